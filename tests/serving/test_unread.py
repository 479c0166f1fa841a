"""What cannot be loaded now: told, tried again less and less often, and no hindrance to the others; without vLLM."""

import asyncio
import dataclasses

from raydistill.registry.aliases import move_alias
from raydistill.registry.resolve import rollback
from raydistill.serving.adapters import AdapterTable
from tests.serving.test_adapters import served


def test_what_fails_again_and_again_is_tried_less_often_until_the_alias_moves_to_it(registry, engine, table):
    registry.publish(count=2)
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.refresh())
    move_alias(registry.model(), "final", "v0002")
    tries = []
    engine.faults = lambda what: tries.append(what) or 1 / 0
    tries_after = []
    for _ in range(80):
        asyncio.run(table.refresh())
        tries_after.append(len(tries))
        assert "ZeroDivisionError" in table.status()["unread"]["triage/v0002"], "told while it is left alone, too"
    assert [tries_after.index(count) for count in range(1, 8)] == [0, 1, 3, 7, 15, 31, 63]
    engine.faults = None
    rollback(registry.model(), "final")
    asyncio.run(table.refresh())
    assert table.status()["unread"] == {}
    move_alias(registry.model(), "final", "v0002")
    asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0002"}


def test_a_version_that_is_rolled_back_while_it_loads_answers_nobody(registry, engine, tmp_path):
    registry.publish(count=2)
    move_alias(registry.model(), "final", "v0001")
    may_load = asyncio.Event()
    may_load.set()
    seen = set()

    async def load(name, folder):
        await may_load.wait()
        return await engine.load(name, folder)

    async def run():
        await table.refresh()
        may_load.clear()
        move_alias(registry.model(), "final", "v0002")
        await table.look()
        rollback(registry.model(), "final")
        await table.look()
        assert list(table.status()["loading"]) == ["triage/v0002"]
        may_load.set()
        while table.status()["loading"]:
            await asyncio.sleep(0.001)
            seen.update(served(table).values())
        await table.refresh()
        seen.update(served(table).values())

    table = AdapterTable(registry.uri, dataclasses.replace(engine.gate(tmp_path / "cache"), load=load), max_resident=4)
    asyncio.run(run())
    assert seen == {"triage/v0001"} and len(engine.loads) == 2


def test_a_load_that_hangs_stops_no_other_alias_is_told_and_is_given_up(registry, engine, tmp_path):
    for name in ("a", "b"):
        registry.publish(name, 3)
        move_alias(registry.model(name), "final", "v0001")
    hung = asyncio.Event()

    async def load(name, folder):
        if name.startswith("a/v0002"):
            await hung.wait()
        return await engine.load(name, folder)

    async def follow(seconds, until):
        async with asyncio.timeout(seconds):
            while not until():
                await table.look()
                await asyncio.sleep(0.01)

    async def run():
        await table.refresh()
        for name in ("a", "b"):
            move_alias(registry.model(name), "final", "v0002")
        await follow(20, lambda: served(table)["b/final"] == "b/v0002")
        move_alias(registry.model("b"), "final", "v0003")
        await follow(20, lambda: served(table) == {"a/final": "a/v0001", "b/final": "b/v0003"})
        told = table.status()
        assert list(told["loading"]) == ["a/v0002"] and told["loading"]["a/v0002"].startswith("20")
        await follow(20, lambda: "a/v0002" in table.status()["unread"])
        assert "a/v0002 was not loaded within 2 s" in table.status()["unread"]["a/v0002"]
        hung.set()
        await follow(20, lambda: served(table)["a/final"] == "a/v0002")
        assert table.status()["loading"] == table.status()["unread"] == table.status()["refused"] == {}

    gate = dataclasses.replace(engine.gate(tmp_path / "cache"), load=load, limit_seconds=2)
    table = AdapterTable(registry.uri, gate, max_resident=4)
    asyncio.run(run())
