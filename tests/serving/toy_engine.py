"""An engine that keeps a few adapters in memory, reads the others' files as they are asked for, and dies without them.

So does vLLM (sharp edge: an adapter that was evicted and whose files are gone ends the engine). Its answers are the
digest of the weights' file, so that a mixed or wrong answer shows.
"""

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from raydistill.core.errors import UnavailableError, VerificationError
from raydistill.serving.gate import Gate


@dataclass(frozen=True)
class Adapter:
    """What the engine calls an adapter."""

    number: int
    name: str
    folder: Path


class EngineDiedError(Exception):
    """The engine asked for files that are gone."""


@dataclass
class ToyEngine:
    """Loads, answers in steps, unloads; `faults` is asked before each load and each probe."""

    capacity: int = 2
    cache: OrderedDict[int, str] = field(default_factory=OrderedDict)
    names: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    bad_probes: set[str] = field(default_factory=set)
    faults: object = None

    def gate(self, folder: Path) -> Gate:
        """Return a gate to this engine."""
        return Gate(folder, "", 8, load=self.load, score=self.score, unload=self.unload)

    def _fail_perhaps(self, what: str) -> None:
        if callable(self.faults):
            self.faults(what)

    async def load(self, name: str, folder: Path) -> Adapter:
        self._fail_perhaps("load")
        await asyncio.sleep(0)
        assert name not in self.names, f"{name} is loaded twice"
        adapter = Adapter(len(self.loads) + 1, name, folder)
        self.loads.append(name)
        self.names.add(name)
        self._put(adapter)
        return adapter

    async def score(self, version, name, adapter) -> list[float]:
        self._fail_perhaps("probe")
        await asyncio.sleep(0)
        wrong = 5.0 if version.label in self.bad_probes else 0.0
        return [point.adapter - wrong for point in version.probe]

    async def unload(self, name: str, adapter: Adapter) -> None:
        await asyncio.sleep(0)
        self.names.remove(name)
        self.cache.pop(adapter.number, None)

    def _put(self, adapter: Adapter) -> None:
        if adapter.number not in self.cache:
            try:
                data = (adapter.folder / "adapter_model.safetensors").read_bytes()
            except FileNotFoundError as error:
                raise EngineDiedError(adapter.name) from error
            self.cache[adapter.number] = hashlib.sha256(data).hexdigest()
        self.cache.move_to_end(adapter.number)
        while len(self.cache) > self.capacity:
            self.cache.popitem(last=False)

    async def answer(self, adapter: Adapter, steps: int) -> list[str]:
        """Return one word a step, each from what the engine holds at that step."""
        words = []
        for _ in range(steps):
            await asyncio.sleep(0)
            self._put(adapter)
            words.append(self.cache[adapter.number])
        return words


def refuse(reason: str) -> None:
    """Raise what the engine's own refusal becomes."""
    raise VerificationError(reason)


def storage_away(*_: object) -> None:
    """Stand in for any look at the registry while it does not answer."""
    raise UnavailableError("away")
