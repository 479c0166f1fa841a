"""The versions that one engine holds: loaded once, kept while they are used, taken out least recently used first."""

import asyncio
import contextvars
import logging
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from raydistill.core.errors import RefusedError, ServiceError
from raydistill.core.uris import join
from raydistill.engine import metrics
from raydistill.registry.aliases import Move
from raydistill.registry.fetch import find_content
from raydistill.serving.gate import Gate, Loaded

logger = logging.getLogger(__name__)

LOADS_AT_ONCE = 2  # each holds a whole file in memory

Key = tuple[str, str]  # (model's name, label)


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served, and what has to change before it is tried again.

    Attributes:
        content: of its files when it was tried; see `find_content`.
        num_moves: how many moves the model's history had then.
    """

    reason: str
    content: str
    num_moves: int


class Shelf:
    """What is in the engine, what was refused, and which versions requests run on."""

    def __init__(self, models_uri: str, gate: Gate, max_resident: int) -> None:
        """Take the registry's folder, the checks, and how many versions the engine keeps in memory."""
        self._uri = models_uri
        self._gate = gate
        self._max_resident = max_resident
        self.loaded: dict[Key, Loaded] = {}  # least recently used first
        self.refused: dict[Key, Refusal] = {}
        self.loading: dict[Key, str] = {}  # since when
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)
        self._evicting = asyncio.Lock()
        self._running: Counter[str] = Counter()  # requests, by engine name
        self._left: list[Path] = []

    async def get(self, key: Key, num_moves: int = 0) -> Loaded:
        """Return a version, loaded by one task however many ask; who stops waiting does not end it.

        It stays until the caller awaits something else, unless it is put into `hold` or among the kept ones.

        Args:
            key: the version.
            num_moves: how many moves of the model's aliases are known; see `forgive`.

        Raises:
            RefusedError: it failed a check, now or before.
            NotFoundError, StorageError: it cannot be read now.
            ServiceError: it took longer than the gate's limit.
        """
        while key not in self.loaded:  # it may have left again before this task's turn comes
            if key in self.refused:
                raise RefusedError(self.refused[key].reason)
            task = self._tasks.get(key)
            if task is None:
                load = self._load(key, num_moves)
                # Without the asking request's context, as a row of which the probe would be counted.
                task = self._tasks[key] = asyncio.create_task(load, context=contextvars.Context())
                task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting
            await asyncio.shield(task)
        self.loaded[key] = found = self.loaded.pop(key)
        return found

    async def _load(self, key: Key, num_moves: int) -> None:
        name, label = key
        uri, content = join(self._uri, name), ""
        self.loading[key] = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            async with self._evicting:  # the same version may be leaving, and the engine knows it by its name
                pass
            async with self._loads, asyncio.timeout(self._gate.limit_seconds) as limit:
                content = await asyncio.to_thread(find_content, uri, label)
                self.loaded[key] = await self._gate.admit(uri, label)
            metrics.count_load(self.loaded[key].engine_name)
        except RefusedError as error:
            self.refused[key] = Refusal(str(error), content, num_moves)
            logger.error("%s/%s is refused: %s", name, label, error)
            metrics.count_refusal(f"{name}/{label}", error.check)
            raise
        except TimeoutError:
            if not limit.expired():  # the store's own
                raise
            raise ServiceError(f"{name}/{label} was not loaded within {self._gate.limit_seconds:g} s") from None
        finally:
            del self._tasks[key], self.loading[key]

    async def forgive(self, key: Key, history: Sequence[Move]) -> None:
        """Forget a refusal where an alias was moved to the version once more, or its files have changed."""
        refusal = self.refused.get(key)
        if refusal is None:
            return
        moved = any(move["to"] == key[1] for move in history[refusal.num_moves :])
        if moved or await asyncio.to_thread(find_content, join(self._uri, key[0]), key[1]) != refusal.content:
            self.refused.pop(key, None)

    @contextmanager
    def hold(self, loaded: Loaded) -> Iterator[None]:
        """Keep a version in the engine for as long as a request runs on it."""
        self._running[loaded.engine_name] += 1
        try:
            yield
        finally:
            self._running[loaded.engine_name] -= 1

    async def evict(self, kept: Collection[str]) -> None:
        """Take the least recently used versions out where there are too many, none that a request runs on.

        Files go one call later than their version: an engine that asks for files that are gone dies.

        Args:
            kept: engine names of versions that stay in any case.
        """
        async with self._evicting:
            await self._evict(kept)

    async def _evict(self, kept: Collection[str]) -> None:
        left, self._left = self._left, []
        self._running = +self._running
        idle = [key for key, item in self.loaded.items() if item.engine_name not in {*kept, *self._running}]
        surplus = max(0, len(self.loaded) - self._max_resident)
        leaving = [self.loaded.pop(key) for key in idle[:surplus]]  # nothing awaited: no request can take them now
        for folder in left:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        for item in leaving:
            try:
                await self._gate.unload(item.engine_name, item.adapter)
            except Exception:  # the engine's process failed: it may still want the files
                logger.exception("%s could not be taken out of the engine; its files stay", item.engine_name)
                continue
            self._left.append(item.folder)
            logger.info("%s has left the engine", item.engine_name)
