"""Hundreds of swaps under concurrent requests, with faults from a seed: no request fails, none mixes versions.

The engine is a toy that dies where vLLM dies (see toy_engine). Registry, follower and table are the real ones.
"""

import asyncio
import hashlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raydistill.core import storage
from raydistill.core.errors import UnavailableError
from raydistill.registry import fetch, follow
from raydistill.registry.aliases import move_alias
from raydistill.registry.resolve import rollback
from raydistill.registry.versions import read_version
from raydistill.serving.adapters import AdapterTable
from raydistill.serving.unread import LONGEST_PAUSE
from tests.serving.toy_engine import EngineDiedError, ToyEngine

SEEDS = int(os.environ.get("RAYDISTILL_SWAP_SEEDS", "4"))  # `make soak` asks for more
SWAPS = 60  # a seed
MODELS = ("billing", "triage")
ALIASES = ("candidate", "final")
CLIENTS = 8
VERSIONS = 5  # of each model, at first; every third is bad
MAX_RESIDENT = 3  # fewer than aliases mean at times: what is in use goes beyond


@dataclass
class Weather:
    """Whether storage is away, and how often an engine's load or probe breaks off."""

    dice: random.Random
    away: bool = False
    fault_share: float = 0.0

    def storage(self, function):
        def call(*arguments, **options):
            if self.away or self.dice.random() < self.fault_share:
                raise UnavailableError("the store is away")
            return function(*arguments, **options)

        return call

    def engine(self, what):
        if self.dice.random() < self.fault_share:
            raise RuntimeError(f"{what} broke off")


@dataclass
class Replica:
    """A table on an engine of its own, and what its clients saw."""

    table: AdapterTable
    engine: ToyEngine
    answers: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_request_fails_or_mixes_versions_while_versions_swap(registry, tmp_path, monkeypatch, seed):
    dice = random.Random(f"swaps-{seed}")
    weather = Weather(random.Random(f"weather-{seed}"))
    for place, name in ((storage, "read"), (follow, "find_etags"), (fetch, "find_etag")):
        monkeypatch.setattr(place, name, weather.storage(getattr(place, name)))
    bad = {f"v{number:04d}" for number in range(3, 1000, 3)}
    for name in MODELS:
        registry.publish(name, VERSIONS)
        spoil(registry, name, bad)
        for alias in ALIASES:
            move_alias(registry.model(name), alias, "v0001")
    named = {(name, alias): ["v0001"] for name in MODELS for alias in ALIASES}
    replicas = asyncio.run(live(registry, tmp_path, dice, weather, bad, named))
    digests = {
        f"{name}/{label}@{read_version(registry.model(name), label).content_digest}": hashlib.sha256(
            Path(registry.model(name), label, "adapter_model.safetensors").read_bytes()
        ).hexdigest()
        for name in MODELS
        for label in storage.list_names(registry.model(name))
        if label.startswith("v0")
    }
    answers = [answer for replica in replicas for answer in replica.answers]
    assert len(answers) > 10 * SWAPS
    for asked, exact, words in answers:
        assert set(words) == {digests[exact]}, f"{asked} said it was {exact}"
        assert exact.startswith(asked.split("/")[0])
        assert exact.partition("/")[2].partition("@")[0] not in bad, "a bad version answered"
    assert len({exact for _, exact, _ in answers}) >= 6, "hardly anything was swapped, so this test saw nothing"
    for replica in replicas:
        assert replica.table.status()["aliases"] == expect(registry, bad, named)


def spoil(registry, name, bad):
    """Change every other bad version's weights; the engine's probe refuses the rest."""
    for label in sorted(bad)[::2]:
        path = Path(registry.model(name), label, "adapter_model.safetensors")
        if path.exists():
            path.write_bytes(b"changed")


def expect(registry, bad, named):
    """Return what every alias means: the newest that it named, was not rolled back and is not bad."""
    found = {}
    for (name, alias), labels in named.items():
        label = next(label for label in reversed(labels) if label not in bad)
        digest = read_version(registry.model(name), label).content_digest
        found[f"{name}/{alias}"] = f"{name}/{label}@{digest}"
    return found


async def live(registry, tmp_path, dice, weather, bad, named):
    """Serve, swap and break things; return the replicas, the last of which came while an alias moved."""
    replicas, tasks, done = [], [], asyncio.Event()

    async def add_replica():
        engine = ToyEngine(capacity=2, bad_probes=bad, faults=weather.engine)
        folder = tmp_path / f"replica{len(replicas)}"
        table = AdapterTable(registry.uri, engine.gate(folder), MAX_RESIDENT)
        await table.start(0.001, 60, 60)
        replica = Replica(table, engine)
        replicas.append(replica)
        tasks.append(asyncio.create_task(poll(replica, done)))
        tasks.extend(asyncio.create_task(ask(replica, dice, done)) for _ in range(CLIENTS))

    await add_replica()
    for swap in range(SWAPS):
        weather.away = dice.random() < 0.15
        weather.fault_share = dice.choice((0.0, 0.0, 0.05))
        if swap % 20 == 10:
            tasks.append(asyncio.create_task(add_replica()))
        await asyncio.sleep(0.01 * dice.random())
        weather.away = False
        weather.fault_share = 0.0
        await asyncio.to_thread(swap_something, registry, dice, bad, named)
    while len(replicas) < 1 + SWAPS // 20:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    done.set()
    await asyncio.gather(*tasks)  # raises what failed a request
    for replica in replicas:
        for _ in range(LONGEST_PAUSE + 1):  # what failed several times is left alone for so many looks at most
            await replica.table.refresh()
    return replicas


def swap_something(registry, dice, bad, named):
    """Publish, promote or roll back, and note what stands of what each alias named."""
    name, alias = dice.choice(MODELS), dice.choice(ALIASES)
    uri = registry.model(name)
    if dice.random() < 0.3:
        registry.publish(name)
        spoil(registry, name, bad)
    stands = named[name, alias]
    if dice.random() < 0.3 and len(stands) > 1:
        stands.pop()
        assert rollback(uri, alias).mapping[alias] == stands[-1]
    else:
        label = dice.choice([label for label in storage.list_names(uri) if label.startswith("v0")])
        move_alias(uri, alias, label)
        if label != stands[-1]:
            stands.append(label)


async def poll(replica, done):
    while not done.is_set():
        await replica.table.refresh()
        await asyncio.sleep(0.001)


async def ask(replica, dice, done):
    """Ask an alias, or now and then a version by its number, again and again."""
    while not done.is_set():
        name = dice.choice(MODELS)
        asked = f"{name}/{dice.choice(ALIASES)}" if dice.random() < 0.8 else f"{name}/v000{dice.choice((1, 2, 4, 5))}"
        if "v0" in asked and asked not in replica.table.names():
            continue  # to load it may fail while storage is away, and may
        async with replica.table.use(asked) as loaded:
            words = await replica.engine.answer(loaded.adapter, dice.randrange(1, 30))
        replica.answers.append((asked, loaded.engine_name, tuple(words)))
        await asyncio.sleep(0)


def test_this_test_would_see_an_engine_that_lost_a_running_requests_files(registry, tmp_path):
    """The toy dies as vLLM does, so that the test above can fail."""
    registry.publish(count=4)
    engine = ToyEngine(capacity=1)
    table = AdapterTable(registry.uri, engine.gate(tmp_path / "cache"), max_resident=1)

    async def run():
        loaded = await table.find("triage/v0001")  # not `use`: nothing keeps it
        for label in ("v0002", "v0003", "v0004"):
            await table.find(f"triage/{label}")
            await table.refresh()
        await engine.answer(loaded.adapter, 1)

    with pytest.raises(EngineDiedError, match="triage/v0001"):
        asyncio.run(run())
