"""Rollback, deletion, and stores on which no move is safe."""

from pathlib import Path

import pytest

from raydistill.core import s3, storage
from raydistill.core.errors import ConfigError, ConflictError, NotFoundError, StorageError, VerificationError
from raydistill.core.preflight import check_conditional_writes
from raydistill.registry.aliases import move_alias, read_aliases
from raydistill.registry.delete import delete_version
from raydistill.registry.publish import publish
from raydistill.registry.resolve import promote, rollback
from raydistill.registry.versions import inspect_versions, list_versions, read_version
from tests.core.loopback_store import Store, listen
from tests.drafts import make_draft, write_bare_adapter
from tests.moto_bucket import open_bucket


@pytest.fixture(scope="module")
def bucket():
    with open_bucket("moves") as uri:
        yield uri


@pytest.fixture
def adapter(tmp_path):
    return write_bare_adapter(tmp_path / "adapter", b"weights")


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path, adapter):
    """A model with three versions, the third unverifiable."""
    root = str(tmp_path) if request.param == "folder" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    uri = f"{root}/models/triage"
    for verifiable in (True, True, False):
        publish(uri, make_draft(verifiable=verifiable), adapter)
    return uri


def list_moves(uri):
    return [(move["alias"], move["from"], move["to"]) for move in read_aliases(uri).history]


def test_rollback_goes_to_what_the_alias_named_before_and_is_a_move_itself(uri):
    promote(uri, "final", "v0001")
    promote(uri, "candidate", "v0003", force=True)
    promote(uri, "final", "v0002")
    assert rollback(uri, "final").mapping == {"final": "v0001", "candidate": "v0003"}
    assert [move for move in list_moves(uri) if move[0] == "final"] == [
        ("final", None, "v0001"),
        ("final", "v0001", "v0002"),
        ("final", "v0002", "v0001"),
    ]
    assert all("@" in move["by"] and move["time"] for move in read_aliases(uri).history)


def test_each_rollback_goes_one_promotion_further_back(uri, adapter):
    for label in ("v0001", "v0002", "v0003"):
        promote(uri, "final", label, force=True)
    assert [rollback(uri, "final").mapping["final"] for _ in range(2)] == ["v0002", "v0001"]
    with pytest.raises(NotFoundError, match=r"back at v0001, the first .* named v0001, v0002, v0003: promote one"):
        rollback(uri, "final")
    fourth = publish(uri, make_draft(), adapter).label
    promote(uri, "final", fourth)
    assert rollback(uri, "final").mapping["final"] == "v0001", "what was taken back is not come by again"
    promote(uri, "final", "v0003", force=True), promote(uri, "final", fourth), promote(uri, "final", "v0002")
    assert rollback(uri, "final", "v0003").mapping["final"] == "v0003"
    assert rollback(uri, "final").mapping["final"] == "v0001", "two moves were taken back at once"
    assert rollback(uri, "final", fourth).mapping["final"] == fourth
    assert rollback(uri, "final").mapping["final"] == "v0001", "to a version that was taken back is a new promotion"


def test_rollback_to_a_version_needs_that_the_alias_named_it(uri):
    promote(uri, "final", "v0003", force=True)
    promote(uri, "final", "v0002")
    with pytest.raises(NotFoundError, match="final never named v0001, only v0002, v0003"):
        rollback(uri, "final", "v0001")
    assert rollback(uri, "final", "v0003").mapping == {"final": "v0003"}, "what was forced once needs no force"


def test_rollback_says_why_there_is_nothing_to_go_back_to(uri):
    with pytest.raises(NotFoundError, match="no alias 'final'; known aliases: none"):
        rollback(uri, "final")
    promote(uri, "final", "v0001")
    with pytest.raises(NotFoundError, match="final has named v0001 only"):
        rollback(uri, "final")
    promote(uri, "final", "v0002")
    delete_version(uri, "v0001")
    with pytest.raises(NotFoundError, match=r"no version 'v0001'; known versions: v0002, v0003"):
        rollback(uri, "final")


def test_delete_refuses_what_an_alias_points_to_and_what_is_not_there(uri):
    promote(uri, "final", "v0001")
    with pytest.raises(ConflictError, match="v0001 is what final points to"):
        delete_version(uri, "v0001")
    assert read_version(uri, "v0001").number == 1
    with pytest.raises(NotFoundError, match=r"no version 'v0009'; known versions: v0001, v0002, v0003"):
        delete_version(uri, "v0009")
    for odd in ("final", "../v0001", "v1", ""):
        with pytest.raises(ConfigError, match="is no version"):
            delete_version(uri, odd)
    assert len(list_versions(uri)) == 3
    assert list_moves(uri) == [("final", None, "v0001")]


def test_delete_takes_the_record_first_and_the_number_is_not_used_again(uri, adapter, monkeypatch):
    deleted = []
    remove = storage.delete

    def note(place):
        deleted.append(place.rpartition("/")[2])
        remove(place)

    monkeypatch.setattr(storage, "delete", note)
    delete_version(uri, "v0003")
    assert deleted == ["version.json", "adapter_config.json", "adapter_model.safetensors"]
    assert storage.list_names(f"{uri}/v0003") == []
    assert [version.label for version in list_versions(uri)] == ["v0001", "v0002"]
    assert list_moves(uri) == [(None, "v0003", None)]
    with pytest.raises(NotFoundError, match="v0003"):
        promote(uri, "final", "v0003", force=True)
    assert publish(uri, make_draft(), adapter).label == "v0004"


def test_interrupted_deletion_is_never_read_and_is_ended_by_the_next(uri, monkeypatch):
    remove = storage.delete

    def dying_delete(place):
        remove(place)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "delete", dying_delete)
    with pytest.raises(KeyboardInterrupt):
        delete_version(uri, "v0002")
    monkeypatch.undo()
    assert [version.label for version in list_versions(uri)] == ["v0001", "v0003"]
    assert storage.list_names(f"{uri}/v0002") == ["adapter_config.json", "adapter_model.safetensors"]
    delete_version(uri, "v0002")
    assert storage.list_names(f"{uri}/v0002") == []
    assert list_moves(uri) == [(None, "v0002", None)], "told once"


def test_a_damaged_version_is_shown_and_can_be_deleted(uri):
    storage.write_bytes(f"{uri}/v0002/version.json", b"{}")
    storage.write_bytes(f"{uri}/v0004/.claim", b"")
    kinds = {label: type(version).__name__ for label, version in inspect_versions(uri)}
    assert kinds == {"v0001": "Version", "v0002": "VerificationError", "v0003": "Version", "v0004": "NoneType"}
    with pytest.raises(VerificationError):
        promote(uri, "final", "v0002")
    delete_version(uri, "v0002")
    assert dict(inspect_versions(uri))["v0002"] is None


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"{}",
        b"\xff",
        b'{"aliases": {"final": "../../evil"}, "history": []}',
        b'{"aliases": {"../final": "v0001"}, "history": []}',
        b'{"aliases": {"final": 3}, "history": []}',
        b'{"aliases": [], "history": [{"alias": null, "from": "v0001", "to": "v0002"}]}',
        b'{"aliases": {}, "history": [3]}',
        b"[" * 100_000,
    ],
    ids=lambda text: repr(text[:40]),
)
def test_a_damaged_list_of_aliases_is_named_and_moves_nothing(uri, text):
    storage.write_bytes(f"{uri}/aliases.json", text)
    for action in (read_aliases, lambda place: move_alias(place, "final", "v0001")):
        with pytest.raises(StorageError, match=r"aliases\.json is no list of aliases"):
            action(uri)
    assert storage.read_bytes(f"{uri}/aliases.json") == text


def test_aliases_written_before_the_history_had_entries_are_read_on(tmp_path, adapter):
    uri = f"{tmp_path}/models/triage"
    publish(uri, make_draft(), adapter), publish(uri, make_draft(), adapter)
    old = b'{"aliases":{"final":"v0001"},"history":[{"alias":"final","from":null,"time":"2026-01-01","to":"v0001"}]}'
    Path(uri, "aliases.json").write_bytes(old)
    assert move_alias(uri, "final", "v0002").mapping == {"final": "v0002"}
    assert rollback(uri, "final").mapping == {"final": "v0001"}
    assert list_moves(uri) == [("final", None, "v0001"), ("final", "v0001", "v0002"), ("final", "v0002", "v0001")]


@pytest.mark.parametrize(
    ("settings", "header"), [({}, "If-None-Match"), ({"conditional": True, "knows_if_match": False}, "If-Match")]
)
def test_a_store_that_ignores_conditions_is_refused_for_promotion(adapter, monkeypatch, settings, header):
    uri = "s3://b/models/triage"
    with listen(Store, **settings) as (url, store):
        keys = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        for name, value in {**keys, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        for cached in (s3.session, s3.client, check_conditional_writes):
            cached.cache_clear()
        try:
            publish(uri, make_draft(), adapter)
            before = dict(store.objects)
            for action in (lambda: promote(uri, "final", "v0001"), lambda: delete_version(uri, "v0001")):
                with pytest.raises(StorageError, match=f"ignores {header}.*Use a store with conditional writes"):
                    action()
            assert store.objects == before, "nothing was moved, and no probe is left"
        finally:
            for cached in (s3.session, s3.client, check_conditional_writes):
                cached.cache_clear()
