"""One alias merged into the weights, swapped under requests, with faults from a seed; the engine is a toy.

Registry, follower, table and the change of weights are the real ones. A real engine: tests/jobs/test_merged_student.py.
"""

import asyncio
import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raydistill.core.errors import NotFoundError
from raydistill.registry.aliases import move_alias
from raydistill.registry.versions import read_version
from raydistill.serving.gate import Gate
from raydistill.serving.merged import MergedTable
from raydistill.serving.weights import Weights

SWAPS = 40
CLIENTS = 6


@dataclass
class ToyWeights:
    """An engine of which every word tells the weights it was made by; changing them takes a while and may break off."""

    content: str = "base"
    computing: int = 0
    bad_probes: set[str] = field(default_factory=set)
    faults: random.Random | None = None  # of loads; what was in once can be put back
    seen: set[Path | None] = field(default_factory=set)
    dead: bool = False

    async def merge(self, name: str, folder: Path | None) -> None:
        assert not self.computing, f"{name} came into weights that answer"
        wanted = "base" if folder is None else hashlib.sha256((folder / "adapter_model.safetensors").read_bytes())
        self.content = "of nobody"
        await asyncio.sleep(0)
        is_new = folder is not None and folder not in self.seen
        if self.dead or (is_new and self.faults is not None and self.faults.random() < 0.2):
            raise RuntimeError("broke off")
        self.seen.add(folder)
        self.content = wanted if isinstance(wanted, str) else wanted.hexdigest()

    async def score(self, version, name, adapter) -> list[float]:
        assert adapter is None
        await asyncio.sleep(0)
        wrong = 5.0 if version.label in self.bad_probes else 0.0
        return [point.adapter - wrong for point in version.probe]

    async def answer(self, steps: int) -> set[str]:
        self.computing += 1
        words = set()
        for _ in range(steps):
            await asyncio.sleep(0)
            words.add(self.content)
        self.computing -= 1
        return words


def make_table(registry, engine, folder, alias=("triage", "final")):
    weights = Weights("base", engine.merge)
    gate = Gate(folder, "", 8, load=weights.load, score=engine.score, unload=weights.unload)
    return MergedTable(registry.uri, gate, alias, weights), weights


@pytest.mark.parametrize("seed", range(4))
def test_no_request_sees_two_versions_or_another_than_it_is_told(registry, tmp_path, seed):
    dice = random.Random(f"merged-{seed}")
    labels = registry.publish(count=6)
    bad = {"v0003", "v0005"}
    engine = ToyWeights(bad_probes=bad, faults=dice)
    table, weights = make_table(registry, engine, tmp_path / "cache")
    answers: list[tuple[str, set[str]]] = []
    over = False

    async def ask():
        while not over:
            async with table.use(dice.choice(("triage", "triage/final"))) as loaded:
                answers.append((loaded.engine_name, await engine.answer(dice.randrange(1, 9))))
            await asyncio.sleep(0)

    async def live():
        nonlocal over
        move_alias(registry.model(), "final", "v0001")
        while "triage/final" not in table.status()["aliases"]:
            await table.refresh()
        clients = [asyncio.create_task(ask()) for _ in range(CLIENTS)]
        for _ in range(SWAPS):
            move_alias(registry.model(), "final", dice.choice(labels))
            for _ in range(dice.randrange(1, 4)):
                await table.refresh()
                assert not weights.are_changing, "requests would wait for ever"
        engine.faults = None
        await table.refresh()
        over = True
        await asyncio.gather(*clients)

    asyncio.run(live())
    digest_of = {}
    for label in labels:
        data = Path(registry.model(), label, "adapter_model.safetensors").read_bytes()
        exact = f"triage/{label}@{read_version(registry.model(), label).content_digest}"
        digest_of[exact] = hashlib.sha256(data).hexdigest()
    assert len(answers) > SWAPS
    assert len({exact for exact, _ in answers}) >= 3, "hardly anything was swapped, so this test saw nothing"
    for exact, words in answers:
        assert words == {digest_of[exact]}, exact
        assert exact.partition("/")[2].partition("@")[0] not in bad


def test_only_the_alias_and_its_version_are_served(registry, tmp_path):
    registry.publish(count=2)
    registry.publish("other")
    for name in ("triage", "other"):
        move_alias(registry.model(name), "final", "v0001")
    table, _ = make_table(registry, ToyWeights(), tmp_path / "cache")

    async def ask():
        with pytest.raises(NotFoundError, match="not served here"):
            await table.find("triage")
        await table.refresh()
        for model in ("triage", "triage/final", "triage/v0001", "raydistill://triage/final"):
            assert (await table.find(model)).version.label == "v0001"
        for model in ("triage/v0002", "triage/candidate", "other", "", "base"):
            with pytest.raises(NotFoundError, match="only triage/final, merged into its weights"):
                await table.find(model)
        move_alias(registry.model(), "final", "v0002")
        await table.look()
        while "v0001" in table.status()["aliases"]["triage/final"]:
            await asyncio.sleep(0)
        assert table.names() == ["triage/final", "triage/v0002"], "at once, and not with the next look"
        with pytest.raises(NotFoundError, match="not served here"):
            await table.find("triage/v0001")

    asyncio.run(ask())


def test_a_refused_version_leaves_the_weights_of_before(registry, tmp_path):
    registry.publish(count=2)
    engine = ToyWeights(bad_probes={"v0002"})
    table, weights = make_table(registry, engine, tmp_path / "cache")
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.refresh())
    before = engine.content
    move_alias(registry.model(), "final", "v0002")
    asyncio.run(table.refresh())
    assert engine.content == before and not weights.are_changing and not weights.fault
    assert "the probe failed" in table.status()["refused"]["triage/v0002"]


def test_without_a_version_that_passes_nothing_is_served_in_its_name(registry, tmp_path):
    registry.publish()
    table, _ = make_table(registry, ToyWeights(bad_probes={"v0001"}), tmp_path / "cache")
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.refresh())
    with pytest.raises(NotFoundError, match="v0001 was refused"):
        asyncio.run(table.find("triage"))


def test_weights_that_cannot_be_put_back_answer_nobody_and_say_so(registry, tmp_path):
    registry.publish(count=2)
    engine = ToyWeights()
    table, weights = make_table(registry, engine, tmp_path / "cache")
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.refresh())
    engine.dead = True
    move_alias(registry.model(), "final", "v0002")
    asyncio.run(table.refresh())
    assert "neither triage/v0002@" in weights.fault and "RuntimeError: broke off" in weights.fault

    async def ask():
        async with asyncio.timeout(0.05), table.use("triage"):
            raise AssertionError("answered by the weights of nobody")

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
