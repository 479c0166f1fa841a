"""Publishing, numbers, aliases by compare-and-swap, and what a reader sees of a torn publication."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raydistill.core import storage
from raydistill.core.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    StorageError,
    VerificationError,
)
from raydistill.registry.aliases import move_alias, read_aliases
from raydistill.registry.publish import publish
from raydistill.registry.resolve import promote, resolve
from raydistill.registry.versions import list_versions, read_version
from tests.drafts import make_draft, write_bare_adapter
from tests.moto_bucket import open_bucket


@pytest.fixture
def adapter(tmp_path):
    folder = write_bare_adapter(tmp_path / "adapter", b"weights")
    Path(folder, "adapter_model.bin").write_bytes(b"a pickle that nobody may publish")
    return folder


@pytest.fixture(scope="module")
def bucket():
    with open_bucket("registry") as uri:
        yield uri


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    root = str(tmp_path) if request.param == "folder" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return f"{root}/models/triage"


def test_publish_gives_the_next_number_and_reads_back_equal(uri, adapter):
    first, second = publish(uri, make_draft(), adapter), publish(uri, make_draft(), adapter)
    assert (first.label, second.label) == ("v0001", "v0002")
    assert list_versions(uri) == [first, second]
    assert read_version(uri, "v0001") == first
    assert [entry.name for entry in first.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert storage.list_names(f"{uri}/v0001") == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "version.json",
    ]
    assert first.files[1].bytes == len(b"weights")


def test_publish_from_many_threads_gives_distinct_numbers(uri, adapter):
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: publish(uri, make_draft(), adapter), range(8)))
    assert sorted(version.number for version in versions) == list(range(1, 9))
    assert len(list_versions(uri)) == 8


def test_torn_publication_is_invisible_and_its_number_is_not_used_again(uri, adapter, monkeypatch):
    publish(uri, make_draft(), adapter)
    write = storage.write_bytes

    def dying_write(place, data, if_match=None):
        if place.endswith("version.json"):
            raise KeyboardInterrupt
        return write(place, data, if_match)

    monkeypatch.setattr(storage, "write_bytes", dying_write)
    with pytest.raises(KeyboardInterrupt):
        publish(uri, make_draft(), adapter)
    monkeypatch.undo()
    assert [version.label for version in list_versions(uri)] == ["v0001"]
    with pytest.raises(NotFoundError, match=r"no version 'v0002'; known versions: v0001"):
        read_version(uri, "v0002")
    assert publish(uri, make_draft(), adapter).label == "v0003"


def test_publish_refuses_another_models_folder_and_an_adapter_without_weights(uri, adapter, tmp_path):
    with pytest.raises(ConfigError, match="folder of 'triage', not of 'analyst'"):
        publish(uri, make_draft(name="analyst"), adapter)
    with pytest.raises(NotFoundError, match=r"holds no adapter_config\.json"):
        publish(uri, make_draft(), str(tmp_path / "nothing"))
    assert storage.list_names(uri) == []


def test_resolve_follows_aliases_and_labels_and_names_the_known_ones(uri, adapter):
    with pytest.raises(NotFoundError, match="nothing is published there"):
        resolve(uri, "v0001")
    first, second = publish(uri, make_draft(), adapter), publish(uri, make_draft(), adapter)
    move_alias(uri, "final", "v0001")
    assert resolve(uri, "final") == first
    move_alias(uri, "final", "v0002")
    assert resolve(uri, "final") == second
    assert resolve(uri, "v0001") == first
    with pytest.raises(NotFoundError, match=r"no alias 'finale'.*final -> v0002.*v0001, v0002"):
        resolve(uri, "finale")


def test_move_alias_keeps_every_move_and_writes_nothing_when_it_points_there_already(uri, adapter):
    publish(uri, make_draft(), adapter), publish(uri, make_draft(), adapter)
    for label in ("v0001", "v0002", "v0002", "v0001"):
        move_alias(uri, "final", label)
    move_alias(uri, "candidate", "v0002")
    aliases = read_aliases(uri)
    assert aliases.mapping == {"final": "v0001", "candidate": "v0002"}
    moves = [(move["alias"], move["from"], move["to"]) for move in aliases.history]
    assert moves == [
        ("final", None, "v0001"),
        ("final", "v0001", "v0002"),
        ("final", "v0002", "v0001"),
        ("candidate", None, "v0002"),
    ]
    assert all(move["time"].endswith("+00:00") for move in aliases.history)
    assert aliases.etag == storage.read(f"{uri}/aliases.json")[1]


def test_move_alias_refuses_an_unpublished_version_and_a_name_like_a_version(uri, adapter):
    publish(uri, make_draft(), adapter)
    with pytest.raises(NotFoundError, match="v0009"):
        move_alias(uri, "final", "v0009")
    with pytest.raises(ConfigError, match="looks like a version"):
        move_alias(uri, "v2", "v0001")
    with pytest.raises(ConfigError):
        move_alias(uri, "../final", "v0001")
    assert read_aliases(uri).etag == storage.ABSENT


def test_concurrent_moves_of_different_aliases_lose_nothing(uri, adapter):
    publish(uri, make_draft(), adapter)
    names = [f"alias{index}" for index in range(8)]
    barrier = threading.Barrier(len(names))

    def move(name):
        barrier.wait(timeout=30)
        move_alias(uri, name, "v0001", attempts=50)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(move, names))
    aliases = read_aliases(uri)
    assert set(aliases.mapping) == set(names)
    assert len(aliases.history) == len(names)


def test_move_alias_gives_up_when_others_always_win(uri, adapter, monkeypatch):
    publish(uri, make_draft(), adapter)
    calls = []

    def losing_write(place, data, if_match=None):
        calls.append(if_match)
        raise ConflictError("changed")

    monkeypatch.setattr(storage, "write_bytes", losing_write)
    with pytest.raises(ConflictError, match="won 3 times"):
        move_alias(uri, "final", "v0001", attempts=3)
    assert calls == [storage.ABSENT] * 3


def test_promote_needs_force_for_an_unverifiable_version(uri, adapter):
    publish(uri, make_draft(verifiable=False), adapter)
    with pytest.raises(VerificationError, match="force=True"):
        promote(uri, "final", "v0001")
    assert read_aliases(uri).mapping == {}
    assert promote(uri, "final", "v0001", force=True).mapping == {"final": "v0001"}


def test_damaged_records_are_named(uri, adapter):
    version = publish(uri, make_draft(), adapter)
    storage.write_bytes(
        f"{uri}/v0002/version.json",
        json.dumps(dataclasses.asdict(version)).encode(),
    )
    with pytest.raises(VerificationError, match="says it is triage/v0001"):
        read_version(uri, "v0002")
    storage.write_bytes(f"{uri}/v0001/version.json", b"{}")
    with pytest.raises(VerificationError, match=r"v0001/version\.json is no version"):
        read_version(uri, "v0001")
    storage.write_bytes(f"{uri}/aliases.json", b"[]")
    with pytest.raises(StorageError, match=r"aliases\.json"):
        read_aliases(uri)
