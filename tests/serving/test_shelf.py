"""What is in the engine: loaded once, kept while it is used, taken out with its files, counted."""

import asyncio
import dataclasses

from raydistill.engine import metrics
from raydistill.registry import follow
from raydistill.registry.aliases import move_alias
from raydistill.serving.shelf import Shelf
from tests.serving.toy_engine import refuse, storage_away


def test_the_least_recently_used_leaves_with_its_files_and_never_one_in_use(registry, engine, table, tmp_path):
    registry.publish(count=6)
    move_alias(registry.model(), "final", "v0001")
    move_alias(registry.model(), "next", "v0002")

    async def run():
        await table.refresh()
        async with table.use("triage/v0003") as held:
            for label in ("v0004", "v0005"):
                await table.find(f"triage/{label}")
            await table.refresh()
            assert names() == {"v0001", "v0002", "v0003"}, "two aliases and a running request stay, though two may"
            assert (await engine.answer(held.adapter, 3)) == [(await engine.answer(held.adapter, 1))[0]] * 3
        move_alias(registry.model(), "next", "v0006")
        await table.refresh()
        assert names() == {"v0001", "v0006"}
        assert len(list((tmp_path / "cache").iterdir())) > 2
        await table.refresh()  # files leave one call after their version
        assert len(list((tmp_path / "cache").iterdir())) == 2
        await table.find("triage/v0002")  # what has left comes back under a folder of its own
        assert names() == {"v0001", "v0006", "v0002"}

    def names():
        assert {name.partition("@")[0] for name in table.status()["load_seconds"]} == {
            name.partition("@")[0] for name in engine.names
        }
        return {name.partition("@")[0].partition("/")[2] for name in engine.names}

    asyncio.run(run())


def test_one_load_serves_all_who_ask_and_survives_who_leaves(registry, engine, table):
    registry.publish()

    async def run():
        waiting = [asyncio.create_task(table.find("triage/v0001")) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert len({id(item) for item in found[1:]}) == 1

    asyncio.run(run())
    assert len(engine.loads) == 1


def test_a_version_that_left_before_a_waiting_request_got_its_turn_is_loaded_again(registry, engine, tmp_path):
    registry.publish()
    shelf = Shelf(registry.uri, engine.gate(tmp_path / "cache"), max_resident=0)

    async def get_and_evict():
        await shelf.get(("triage", "v0001"))
        await shelf.evict([])

    async def run():
        first = asyncio.create_task(get_and_evict())
        await asyncio.sleep(0)  # it waits first, so it is also the first to go on
        second = await shelf.get(("triage", "v0001"))
        assert second in shelf.loaded.values()
        await first

    asyncio.run(run())
    assert len(engine.loads) == 2


def test_a_version_that_is_leaving_is_loaded_again_when_it_has_left(registry, engine, tmp_path):
    registry.publish()

    async def unload_slowly(name, adapter):
        await asyncio.sleep(0.1)
        await engine.unload(name, adapter)

    gate = dataclasses.replace(engine.gate(tmp_path / "cache"), unload=unload_slowly)
    shelf = Shelf(registry.uri, gate, max_resident=0)

    async def run():
        first = await shelf.get(("triage", "v0001"))
        leaving = asyncio.create_task(shelf.evict([]))
        await asyncio.sleep(0.02)
        second = await shelf.get(("triage", "v0001"))
        await leaving
        assert second.folder != first.folder
        assert engine.names == {second.engine_name}

    asyncio.run(run())


def test_the_engines_own_refusal_leaves_nothing_behind(registry, engine, table, tmp_path):
    registry.publish()
    move_alias(registry.model(), "final", "v0001")
    engine.faults = lambda what: refuse("the engine refused the adapter") if what == "load" else None
    asyncio.run(table.refresh())
    assert table.status()["refused"]["triage/v0001"] == "the engine refused the adapter"
    assert engine.names == set() and list((tmp_path / "cache").iterdir()) == []


def test_loads_refusals_and_swaps_are_counted_once_each(registry, engine, table, monkeypatch):
    told = []
    for name in ("count_load", "count_refusal", "set_active", "observe_swap", "count_storage_error"):
        monkeypatch.setattr(metrics, name, lambda *values, name=name: told.append((name, *values)))
    registry.publish(count=3)
    registry.damage("v0003")
    engine.bad_probes = {"v0002"}
    for label in ("v0001", "v0002", "v0003"):
        move_alias(registry.model(), "final", label)
        for _ in range(2):
            asyncio.run(table.refresh())
    exact = table.status()["aliases"]["triage/final"]
    swap = next(values for name, *values in told if name == "observe_swap")
    assert [entry for entry in told if entry[0] != "observe_swap"] == [
        ("count_load", exact),
        ("set_active", "triage/final", exact, None),
        ("count_refusal", "triage/v0002", "probe"),
        ("count_refusal", "triage/v0003", "digests"),
    ]
    assert swap[:2] == ["triage/final", exact]
    assert set(swap[2]) == {"record", "download", "digests", "checks", "load", "probe", "flip", "total"}
    assert swap[2]["total"] >= sum(value for part, value in swap[2].items() if part != "total")
    monkeypatch.setattr(follow, "find_etags", storage_away)
    asyncio.run(table.refresh())
    assert told[-1] == ("count_storage_error",)
