"""Which version an alias means: followed, refused, unread, tried again, fallen back from, taken out; without vLLM."""

import asyncio
import shutil
from pathlib import Path

import pytest

from raydistill.core.errors import NotFoundError, ServiceError, StorageError, UnavailableError
from raydistill.registry import follow
from raydistill.registry.aliases import move_alias
from raydistill.registry.delete import delete_version
from raydistill.registry.resolve import rollback
from raydistill.serving.adapters import AdapterTable
from raydistill.serving.unread import LONGEST_PAUSE
from tests.serving.toy_engine import ToyEngine, storage_away


def served(table):
    return {alias: exact.partition("@")[0] for alias, exact in table.status()["aliases"].items()}


def test_a_damaged_list_of_aliases_stops_no_other_model(registry, table):
    for name in ("bad", "good"):
        registry.publish(name, 2)
        move_alias(registry.model(name), "final", "v0001")
    asyncio.run(table.refresh())
    whole = Path(registry.model("bad"), "aliases.json").read_bytes()
    Path(registry.model("bad"), "aliases.json").write_bytes(b"{")
    move_alias(registry.model("good"), "final", "v0002")
    asyncio.run(table.refresh())
    assert served(table) == {"bad/final": "bad/v0001", "good/final": "good/v0002"}
    assert "aliases.json is no list of aliases" in table.status()["unread"]["bad"]
    Path(registry.model("bad"), "aliases.json").write_bytes(whole)
    move_alias(registry.model("bad"), "final", "v0002")
    asyncio.run(table.refresh())
    assert served(table)["bad/final"] == "bad/v0002"
    assert table.status()["unread"] == {}


def test_a_missing_file_is_waited_for_and_a_wrong_one_is_refused(registry, table):
    registry.publish(count=3)
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.refresh())
    weights = Path(registry.model(), "v0002", "adapter_model.safetensors")
    weights.rename(weights.with_suffix(".later"))
    move_alias(registry.model(), "final", "v0002")
    asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0001"}
    assert table.status()["refused"] == {}
    assert "is missing" in table.status()["unread"]["triage/v0002"]
    weights.with_suffix(".later").rename(weights)
    asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0002"}
    registry.damage("v0003")
    move_alias(registry.model(), "final", "v0003")
    asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0002"}
    assert "SHA-256" in table.status()["refused"]["triage/v0003"]
    assert table.status()["wanted"] == {"triage/final": "v0003"}


@pytest.mark.parametrize("cause", ["content", "move"])
def test_a_refused_version_is_tried_again_when_its_files_or_the_alias_change_and_not_before(
    registry, engine, table, cause
):
    registry.publish(count=2)
    move_alias(registry.model(), "final", "v0001")
    mend = registry.damage("v0002") if cause == "content" else lambda: None
    engine.bad_probes = {"v0002"} if cause == "move" else set()
    move_alias(registry.model(), "final", "v0002")
    for _ in range(3):
        asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0001"}
    assert len(engine.loads) == (1 if cause == "content" else 2), "tried once, not at each poll"
    assert engine.names == {table.status()["aliases"]["triage/final"]}, "the refused one has left the engine"
    engine.bad_probes = set()
    mend()
    if cause == "move":
        asyncio.run(table.refresh())
        assert served(table) == {"triage/final": "triage/v0001"}, "the same content and no move: no new verdict"
        rollback(registry.model(), "final")
        move_alias(registry.model(), "final", "v0002")
    asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0002"}
    assert table.status()["refused"] == {}


def test_a_fault_of_one_version_that_nobody_thought_of_holds_up_no_other(registry, engine, table):
    for name in ("a", "b"):
        registry.publish(name)
        move_alias(registry.model(name), "final", "v0001")
    calls = []
    engine.faults = lambda what: calls.append(what) or (len(calls) == 1 and 1 / 0)
    asyncio.run(table.refresh())
    assert len(served(table)) == 1
    assert "ZeroDivisionError" in next(iter(table.status()["unread"].values()))
    asyncio.run(table.refresh())
    assert len(served(table)) == 2 and table.status()["unread"] == {}


def test_a_new_replica_agrees_with_an_old_one_where_the_newest_versions_are_refused(registry, engine, table, tmp_path):
    registry.publish(count=5)
    for label in ("v0004", "v0005"):
        registry.damage(label)
    for label in ("v0001", "v0002", "v0003"):
        move_alias(registry.model(), "final", label)
        asyncio.run(table.refresh())
    rollback(registry.model(), "final")
    for label in ("v0004", "v0005"):
        move_alias(registry.model(), "final", label)
        asyncio.run(table.refresh())
    new = AdapterTable(registry.uri, ToyEngine().gate(tmp_path / "new"), max_resident=2)
    asyncio.run(new.start(0.01, 1, 1))
    assert served(new) == served(table) == {"triage/final": "triage/v0002"}
    assert set(new.status()["refused"]) == {"triage/v0004", "triage/v0005"}


def test_no_way_back_leads_to_a_version_that_was_rolled_back(registry, table):
    registry.publish(count=3)
    for label in ("v0001", "v0002", "v0003"):
        move_alias(registry.model(), "final", label)
    rollback(registry.model(), "final")
    registry.damage("v0002")
    asyncio.run(table.start(0.01, 1, 1))
    assert served(table) == {"triage/final": "triage/v0001"}, "v0003 was taken back by the operator"


def test_a_replica_whose_only_version_is_refused_comes_up_and_says_so(registry, engine, table):
    registry.publish()
    registry.damage("v0001")
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.start(0.01, 1, 1))
    assert served(table) == {}
    assert "triage/v0001" in table.status()["refused"]
    with pytest.raises(NotFoundError, match=r"not served here: v0001 was refused.*see /status"):
        asyncio.run(table.find("triage"))


def test_a_replica_is_not_up_before_the_registry_can_be_read_and_gives_up_in_time(registry, table, monkeypatch):
    registry.publish()
    move_alias(registry.model(), "final", "v0001")
    tries, find_etags = [], follow.find_etags

    def away(*arguments):
        tries.append(1)
        if len(tries) < 4:
            raise UnavailableError("the store is away")
        return find_etags(*arguments)

    monkeypatch.setattr(follow, "find_etags", away)
    asyncio.run(table.start(0.01, 60, 60))
    assert len(tries) == 4 and served(table) == {"triage/final": "triage/v0001"}
    tries[:] = [0] * -(10**6)
    monkeypatch.setattr(follow, "find_etags", storage_away)
    with pytest.raises(StorageError, match="could not be read for 0 s: away"):
        asyncio.run(table.start(0.01, 0.05, 60))


def test_a_replica_does_not_wait_for_a_bucket_that_is_not_there(engine, tmp_path, monkeypatch):
    def refuse(*_):
        raise StorageError("the bucket does not exist")

    table = AdapterTable("s3://not-there/models", engine.gate(tmp_path / "cache"), max_resident=2)
    monkeypatch.setattr(follow, "find_etags", refuse)
    with pytest.raises(StorageError, match="could not be read for 0 s: the bucket does not exist"):
        asyncio.run(table.start(0.01, 60, 60))


def test_a_replica_on_a_node_without_the_registrys_folder_says_so(registry, table, caplog):
    asyncio.run(table.start(0.01, 1, 1))
    assert f"{registry.uri} is not on this node yet" in caplog.text
    caplog.clear()
    registry.publish()
    asyncio.run(table.start(0.01, 1, 1))
    assert "not on this node" not in caplog.text


def test_a_new_replica_takes_the_version_before_where_the_newest_stays_unreadable(registry, table):
    registry.publish(count=2)
    move_alias(registry.model(), "final", "v0001")
    move_alias(registry.model(), "final", "v0002")
    weights = Path(registry.model(), "v0002", "adapter_model.safetensors")
    data = weights.read_bytes()
    weights.unlink()
    asyncio.run(table.start(0.01, 60, 0.05))
    assert served(table) == {"triage/final": "triage/v0001"}
    assert "triage/v0002" in table.status()["unread"]
    weights.write_bytes(data)
    for _ in range(LONGEST_PAUSE):
        asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0002"}
    assert table.status()["unread"] == {}


@pytest.mark.parametrize("fault", ["answers nothing", "mount gone"])
def test_a_replica_without_storage_goes_on_and_says_so_with_the_time(registry, table, monkeypatch, fault):
    registry.publish(count=2)
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.refresh())
    if fault == "mount gone":
        shutil.move(registry.uri, registry.uri + "-away")
    else:
        monkeypatch.setattr(follow, "find_etags", storage_away)
    asyncio.run(table.refresh())
    first = table.status()
    asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0001"}
    assert asyncio.run(table.find("triage")).version.label == "v0001"
    if fault == "mount gone":
        assert "is gone" in first["unread"]["triage"]
        shutil.move(registry.uri + "-away", registry.uri)
    else:
        assert first["storage_error"] == "away" and first["storage_error_since"].startswith("20")
        assert table.status()["storage_error_since"] == first["storage_error_since"]
        monkeypatch.undo()
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.refresh())
    assert table.status()["storage_error"] is None and table.status()["unread"] == {}


def test_an_explicit_version_that_cannot_be_read_is_told_apart_from_one_that_is_not_there(registry, table, monkeypatch):
    registry.publish()
    asyncio.run(table.refresh())
    with pytest.raises(NotFoundError, match="not served here"):
        asyncio.run(table.find("triage/v0009"))
    monkeypatch.setattr("raydistill.serving.shelf.find_content", storage_away)
    with pytest.raises(ServiceError, match="cannot be read now"):
        asyncio.run(table.find("triage/v0001"))
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.refresh())
    with pytest.raises(ServiceError, match="triage/final is v0001, which cannot be read now"):
        asyncio.run(table.find("triage"))


def test_clients_are_not_told_where_the_files_of_a_refused_version_are(registry, table):
    registry.publish()
    registry.damage("v0001")
    asyncio.run(table.refresh())
    with pytest.raises(NotFoundError, match=r"triage/v0001 was refused \(see /status\)") as caught:
        asyncio.run(table.find("triage/v0001"))
    reason = table.status()["refused"]["triage/v0001"]
    assert registry.uri in reason and registry.uri not in str(caught.value)


def test_a_new_replica_is_not_up_where_the_registry_went_away_while_it_waited(registry, table, monkeypatch):
    registry.publish()
    move_alias(registry.model(), "final", "v0001")
    monkeypatch.setattr("raydistill.serving.shelf.find_content", storage_away)
    refresh = table.refresh

    async def lose_storage(falls_back=False):
        if falls_back:
            monkeypatch.setattr(follow, "find_etags", storage_away)
        await refresh(falls_back)

    monkeypatch.setattr(table, "refresh", lose_storage)
    with pytest.raises(StorageError, match="could not be read"):
        asyncio.run(table.start(0.01, 0.3, 0.05))


def test_an_alias_leaves_when_it_is_gone_and_a_deleted_version_is_no_way_back(registry, table, engine):
    registry.publish(count=3)
    for label in ("v0001", "v0002"):
        move_alias(registry.model(), "final", label)
        asyncio.run(table.refresh())
    registry.damage("v0003")
    move_alias(registry.model(), "final", "v0003")
    delete_version(registry.model(), "v0002")
    asyncio.run(table.refresh())
    assert served(table) == {"triage/final": "triage/v0001"}


@pytest.mark.parametrize(("base", "taken"), [("triage", "triage/final"), ("triage/candidate", "triage/candidate")])
def test_an_alias_that_the_base_model_answers_to_is_refused_by_name(registry, engine, tmp_path, base, taken):
    registry.publish()
    for alias in ("final", "candidate"):
        move_alias(registry.model(), alias, "v0001")
    table = AdapterTable(registry.uri, engine.gate(tmp_path / "cache"), max_resident=2, base_model=base)
    asyncio.run(table.refresh())
    assert served(table) == dict.fromkeys({"triage/final", "triage/candidate"} - {taken}, "triage/v0001")
    assert list(table.status()["refused"]) == [taken] and repr(base) in table.status()["refused"][taken]
    assert taken not in table.names()
