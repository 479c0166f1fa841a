"""What a replica serves: which version each alias means, and what it does not serve and why.

An alias means the newest version of its own history that passes every check. So a refused version leaves the one
before serving, and a replica that starts now agrees with those that were there all along. A version that cannot be
*read* is tried again at the next poll, then less and less often; one that was *refused* only when an alias is moved to
it once more, or its files have changed. The pointer moves between requests; a running request ends on the version it
began with.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raydistill.core.errors import (
    NotFoundError,
    RaydistillError,
    RefusedError,
    ServiceError,
    StorageError,
    UnavailableError,
)
from raydistill.core.uris import is_remote, parse_model_path
from raydistill.engine import metrics
from raydistill.registry.follow import Followed, Follower
from raydistill.registry.versions import LABEL
from raydistill.serving.gate import Gate, Loaded
from raydistill.serving.shelf import Shelf
from raydistill.serving.unread import Unread

logger = logging.getLogger(__name__)

LOOK_BACK = 8  # versions of an alias's history that are tried where the newest are refused
SLOW_SECONDS = 10.0  # a look at the registry that takes longer is told in the status while it lasts

Key = tuple[str, str]  # (model's name, alias)


class AdapterTable:
    """The aliases and versions of every model below one registry folder, as this replica serves them."""

    def __init__(self, models_uri: str, gate: Gate, max_resident: int, base_model: str = "") -> None:
        """Take the registry's folder (ROOT/models), and how to check and keep versions.

        Args:
            models_uri: the folder.
            gate: the checks.
            max_resident: how many versions the engine keeps in memory.
            base_model: its name; requests for it are the base model's.
        """
        self._uri = models_uri
        self._base_model = base_model
        self._shelf = Shelf(models_uri, gate, max_resident)
        self._follower = Follower(models_uri)
        self._followed = Followed({}, {})
        self._served: dict[Key, Loaded] = {}
        self._following: dict[Key, asyncio.Task[None]] = {}  # what is on its way now
        self._unread: dict[Key, dict[str, Unread]] = {}  # by label, what each alias names and cannot be read now
        self._looks = 0
        self._storage_error: tuple[OSError, str] | None = None  # what, and since when
        self._asking: tuple[float, str] | None = None  # since when, on both clocks

    async def start(self, poll_seconds: float, patience_seconds: float, version_patience_seconds: float) -> None:
        """Return when what the aliases name is served or was refused; what cannot be read is asked for again.

        Args:
            poll_seconds: between two tries.
            patience_seconds: for a registry that cannot be read now: a replica that knows of no version would answer
                404 for what its siblings serve. For what does not pass (no such bucket, no rights) there is none.
            version_patience_seconds: for single versions that cannot be read; then the version before is served.

        Raises:
            StorageError: patience ended, or there is nothing to wait for.
        """
        if not is_remote(self._uri) and not Path(self._uri).is_dir():
            logger.warning(
                "%s is not on this node yet. Where there are several nodes, storage has to be s3://..., or a folder "
                "that all of them have mounted: a replica that does not see it serves no version.",
                self._uri,
            )
        start = time.monotonic()
        while True:
            await self.refresh()
            waited = time.monotonic() - start
            if self._storage_error is not None:
                error = self._storage_error[0]
                if waited > patience_seconds or self._lasts(error):
                    raise StorageError(f"the registry could not be read for {waited:.0f} s: {error}") from error
            elif not any(self._unread.values()):
                return
            elif waited > version_patience_seconds:
                await self.refresh(falls_back=True)
                if self._storage_error is None:
                    return
            await asyncio.sleep(poll_seconds)

    async def refresh(self, falls_back: bool = False) -> None:
        """Follow the aliases to where they point now, and return when nothing is on its way any more; see `look`."""
        await self.look(falls_back)
        await asyncio.gather(*self._following.values())
        await self._evict()

    async def look(self, falls_back: bool = False) -> None:
        """Begin to follow the aliases to where they point now; storage that is away leaves everything as it was.

        What is still on its way from a look before is left to it, so a load that takes long holds up no other alias.

        Args:
            falls_back: an alias that means no version yet takes an older one where the newest cannot be read.
        """
        self._asking = (time.monotonic(), _now())
        try:
            self._followed = await asyncio.to_thread(self._follower.poll)
        except OSError as error:
            if self._storage_error is None:
                logger.warning("the registry cannot be read, serving what is loaded: %s", error)
            self._storage_error = (error, (self._storage_error or self._asking)[1])
            metrics.count_storage_error()
            return
        finally:
            self._asking = None
        self._storage_error = None
        self._looks += 1
        wanted = self._wanted()
        for key in set(self._served) - wanted:
            metrics.set_active("/".join(key), "", self._served.pop(key).engine_name)
            self._unread.pop(key, None)
        if not self._following:  # what has just been loaded and is not pointed to yet must not leave
            await self._evict()
        for key in sorted(wanted - self._following.keys()):
            self._following[key] = task = asyncio.create_task(self._follow(key, falls_back))
            task.add_done_callback(lambda _, key=key: self._following.pop(key))

    def _lasts(self, error: OSError) -> bool:
        """Return whether a fault does not pass by itself, as far as one can tell: a mount may always come back."""
        return is_remote(self._uri) and isinstance(error, StorageError) and not isinstance(error, UnavailableError)

    def _wanted(self) -> set[Key]:
        """Return the aliases that are followed, of those that there are."""
        return self._named() - self._shadowed()

    def _named(self) -> set[Key]:
        return {(name, alias) for name, found in self._followed.models.items() for alias in found.mapping}

    def _shadowed(self) -> set[Key]:
        """Return the aliases that a request may mean, or the base model: it answers to the same name."""
        return {
            key for key in self._named() if self._base_model in ("/".join(key), "/".join(key).removesuffix("/final"))
        }

    async def _follow(self, key: Key, falls_back: bool) -> None:
        """Let an alias mean the newest version of its history that passes."""
        name, alias = key
        current, aliases = self._served.get(key), self._followed.models[name]
        num_moves, before, unread = len(aliases.history), self._unread.get(key, {}), {}
        targets = aliases.targets(alias)[:LOOK_BACK]
        for label in targets:
            if current is not None and current.version.label == label:
                break
            known = before.get(label)
            if known is None or known.is_due(self._looks, num_moves):
                try:
                    if label == targets[0]:
                        await self._shelf.forgive((name, label), aliases.history)
                    await self._swap(key, label, num_moves)
                    break
                except RefusedError:
                    continue
                except Exception as error:  # noqa: BLE001 - one version's trouble must not hold up the others
                    logger.warning("%s/%s cannot follow to %s now: %r", name, alias, label, error)
                    failures = 1 + (known.failures if known and known.num_moves == num_moves else 0)
                    known = Unread(f"{type(error).__name__}: {error}", self._looks, num_moves, failures)
            unread[label] = known
            if current is not None or not falls_back:
                break
        self._unread[key] = unread

    async def _swap(self, key: Key, label: str, num_moves: int) -> None:
        """Load a version, where it is not there yet, and let the alias mean it."""
        start, place = time.perf_counter(), (key[0], label)
        was_there = place in self._shelf.loaded
        loaded = await self._shelf.get(place, num_moves)
        if not self._may_mean(key, label):
            return
        self._point(key, loaded)
        now = time.perf_counter()
        if not was_there:
            loaded.seconds.setdefault("flip", now - loaded.passed)
        parts = {} if was_there else loaded.seconds
        metrics.observe_swap("/".join(key), loaded.engine_name, {**parts, "total": now - start})

    def _may_mean(self, key: Key, label: str) -> bool:
        """Return whether an alias may still mean a version that was on its way: it may be rolled back by now."""
        return label in self._followed.models[key[0]].targets(key[1])

    def _point(self, key: Key, loaded: Loaded) -> None:
        before = self._served.get(key)
        self._served[key] = loaded
        logger.info("%s is now %s", "/".join(key), loaded.engine_name)
        metrics.set_active("/".join(key), loaded.engine_name, before.engine_name if before else None)

    async def _evict(self) -> None:
        await self._shelf.evict([loaded.engine_name for loaded in self._served.values()])

    async def find(self, model: str) -> Loaded:
        """Return the version that answers `name`, `name/alias` or `name/v0001` now; to run on it, see `use`.

        Raises:
            NotFoundError: nothing verified is served under that name; the message names what is.
            ServiceError: the version is known, but cannot be read now.
        """
        try:
            name, ref = parse_model_path(model)
        except RaydistillError as error:
            raise NotFoundError(f"{model!r} is not served here. {self._describe()}") from error
        served = self._served.get((name, ref))
        if served is None and not LABEL.fullmatch(ref):
            raise self._explain(model, name, ref)
        label = served.version.label if served else ref
        try:
            return await self._shelf.get((name, label))
        except RefusedError as error:
            # Why, with the places of files, is for those who may see /status and not for every client.
            raise NotFoundError(f"{name}/{ref} was refused (see /status). {self._describe()}") from error
        except NotFoundError as error:
            raise NotFoundError(f"{model!r} is not served here. {self._describe()}") from error
        except StorageError as error:
            raise ServiceError(f"{name}/{ref} cannot be read now; try again.") from error

    @asynccontextmanager
    async def use(self, model: str) -> AsyncIterator[Loaded]:
        """Find a version and keep it in the engine for as long as the request runs; see `find`."""
        loaded = await self.find(model)
        with self._shelf.hold(loaded):  # nothing is awaited in between: it cannot leave before
            yield loaded

    def names(self) -> list[str]:
        """Return the names that requests may use: aliases and loaded versions."""
        return sorted({*map("/".join, self._served), *map("/".join, self._shelf.loaded)})

    def saved_tokens(self, engine_name: str) -> int:
        """Return how many tokens of P a version's prompts do without; 0 where its record does not say."""
        versions = [item.version for item in self._shelf.loaded.values() if item.engine_name == engine_name]
        return int(versions[0].metrics.get("prompt_tokens_saved") or 0) if versions else 0

    def status(self) -> dict[str, Any]:
        """Return aliases with their exact versions, what is not served and why, and the storage's state."""
        refused = {"/".join(key): item.reason for key, item in sorted(self._shelf.refused.items())}
        shadowed = f"the base model is named {self._base_model!r} and answers to that; name the model otherwise"
        refused |= dict.fromkeys(map("/".join, sorted(self._shadowed())), shadowed)
        unread = {
            f"{name}/{label}": item.reason
            for (name, _), items in sorted(self._unread.items())
            for label, item in items.items()
        }
        error = None if self._storage_error is None else (str(self._storage_error[0]), self._storage_error[1])
        if error is None and self._asking is not None and time.monotonic() - self._asking[0] > SLOW_SECONDS:
            error = (f"{self._uri} does not answer", self._asking[1])
        return {
            "aliases": {"/".join(key): item.engine_name for key, item in sorted(self._served.items())},
            "wanted": {
                f"{name}/{alias}": label
                for name, found in sorted(self._followed.models.items())
                for alias, label in sorted(found.mapping.items())
            },
            "refused": refused,
            "unread": unread | self._followed.unreadable,
            "loading": {"/".join(key): since for key, since in sorted(self._shelf.loading.items())},
            "load_seconds": {item.engine_name: item.seconds for item in self._shelf.loaded.values()},
            "storage_error": error[0] if error else None,
            "storage_error_since": error[1] if error else None,
        }

    def _explain(self, model: str, name: str, ref: str) -> NotFoundError | ServiceError:
        """Return why an alias means no version: it is none, its version was refused, or that cannot be read now."""
        found = self._followed.models.get(name)
        label = found.mapping.get(ref) if found else None
        if label is not None and (name, label) not in self._shelf.refused:
            return ServiceError(f"{name}/{ref} is {label}, which cannot be read now; try again.")
        refused = f": {label} was refused" if label else ""
        return NotFoundError(f"{model!r} is not served here{refused}. {self._describe()}")

    def _describe(self) -> str:
        refused = ", ".join("/".join(key) for key in sorted(self._shelf.refused))
        known = ", ".join(self.names()) or "none"
        return f"Known: {known}." + (f" Refused: {refused} (see /status)." if refused else "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
