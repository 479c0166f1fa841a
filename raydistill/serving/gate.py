"""The way of a version into the engine: downloaded, checked, loaded, proved by its probe; else nothing is left."""

import asyncio
import contextlib
import itertools
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydistill.core.errors import RefusedError, VerificationError
from raydistill.core.records import Version
from raydistill.registry.check import check_version
from raydistill.registry.fetch import fetch_version
from raydistill.registry.probe import probe_passes
from raydistill.registry.versions import read_version


@dataclass(frozen=True)
class Loaded:
    """A version in the engine.

    Attributes:
        engine_name: name/v0001@digest: what every response carries.
        adapter: vLLM's LoRARequest.
        folder: its files, which stay for as long as the engine may ask for them.
        seconds: what its way took, by part: record, download, digests, checks, load, probe; and flip, from there to
            when the first alias meant it.
        passed: when its probe had passed, on the clock of time.perf_counter.
    """

    version: Version
    engine_name: str
    adapter: Any
    folder: Path
    seconds: dict[str, float]
    passed: float


@dataclass(frozen=True)
class Gate:
    """What a version must pass before traffic: where it is unpacked, what it is checked against, how it is tried.

    Attributes:
        folder: each load gets a folder of its own below it, so that no two ever share files.
        model_dir: local folder of the base model.
        load: engine name, folder -> adapter.
        score: version, engine name, adapter -> log-probability of each probe point's token.
        unload: engine name, adapter; afterwards the engine never asks for its files again.
        merges: whether `load` merges it into the base model's weights.
        limit_seconds: of the whole way; one that takes longer is given up, and is no refusal.
    """

    folder: Path
    model_dir: str
    max_rank: int
    load: Callable[[str, Path], Awaitable[Any]]
    score: Callable[[Version, str, Any], Awaitable[list[float]]]
    unload: Callable[[str, Any], Awaitable[None]]
    merges: bool = False
    limit_seconds: float = 300.0  # 8 GiB, the largest file, at 30 MB/s
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def admit(self, uri: str, label: str) -> Loaded:
        """Return a version that passed everything; of one that did not, neither engine nor disk keeps anything.

        Args:
            uri: the model's registry folder.
            label: like `v0001`.

        Raises:
            RefusedError: a check failed: it fails again for as long as the version's files are the same.
            NotFoundError, StorageError: it cannot be read now.
        """
        private = self.folder / f"{next(self._numbers):06d}"
        seconds: dict[str, float] = {}
        try:
            with _part("record", seconds):
                version = await asyncio.to_thread(read_version, uri, label)
            with _refusing("digests"):
                folder = await asyncio.to_thread(fetch_version, uri, version, private, seconds)
            with _part("checks", seconds):
                await asyncio.to_thread(check_version, version, folder, self.model_dir, self.max_rank, self.merges)
            engine_name = f"{version.name}/{label}@{version.content_digest}"
            with _part("load", seconds):
                adapter = await self.load(engine_name, folder)
            try:
                with _part("probe", seconds):
                    passed, reason = probe_passes(version.probe, await self.score(version, engine_name, adapter))
                    if not passed:
                        raise VerificationError(f"the probe failed: {reason}")
            except BaseException:  # a cancelled load too: what has not passed must not stay in the engine
                await self.unload(engine_name, adapter)
                raise
        except BaseException:  # nor on the disk, whatever ended it
            await asyncio.to_thread(shutil.rmtree, private, ignore_errors=True)
            raise
        return Loaded(version, engine_name, adapter, private, seconds, time.perf_counter())


@contextlib.contextmanager
def _part(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Time one part of the way; its VerificationError becomes a RefusedError with the part's name."""
    start = time.perf_counter()
    with _refusing(name):
        yield
    seconds[name] = time.perf_counter() - start


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except VerificationError as error:
        raise RefusedError(str(error.args[0]), name) from error
