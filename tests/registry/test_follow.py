"""Following many models: what a poll costs in requests, and what it sees."""

import contextlib

import pytest

from raydistill.core import s3, storage
from raydistill.core.errors import StorageError
from raydistill.registry.aliases import HISTORY_FOLDER, move_alias, read_aliases
from raydistill.registry.follow import Follower
from raydistill.registry.publish import publish
from tests.drafts import make_draft, write_bare_adapter
from tests.moto_bucket import open_bucket

NUM_MODELS = 20


@pytest.fixture(scope="module")
def bucket():
    with open_bucket("follow") as uri:
        yield uri


@pytest.fixture(params=["folder", "s3"])
def models_uri(request, tmp_path):
    """A registry of one model with two versions, the alias final at the first."""
    root = str(tmp_path) if request.param == "folder" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    for name in ("triage", "billing"):
        for number in range(2):
            adapter = write_bare_adapter(tmp_path / f"{name}{number}", b"weights")
            publish(f"{root}/models/{name}", make_draft(name=name), adapter)
        move_alias(f"{root}/models/{name}", "final", "v0001")
    return f"{root}/models"


@contextlib.contextmanager
def count_requests():
    """Count the requests that this process sends to the object store, by operation."""
    sent = []

    def note(model, **_):
        sent.append(model.name)

    events = s3.client().meta.events
    events.register("before-call.s3", note)
    try:
        yield sent
    finally:
        events.unregister("before-call.s3", note)


def test_a_poll_of_many_models_is_one_listing_and_a_read_of_each_that_moved(bucket, tmp_path):
    uri = f"{bucket}/many/models"
    adapter = write_bare_adapter(tmp_path / "adapter", b"weights")
    for number in range(NUM_MODELS):
        publish(f"{uri}/m{number}", make_draft(name=f"m{number}"), adapter)
        move_alias(f"{uri}/m{number}", "final", "v0001")
    follower = Follower(uri)
    with count_requests() as sent:
        assert len(follower.poll().models) == NUM_MODELS
    assert sorted(sent) == ["GetObject"] * NUM_MODELS + ["ListObjectsV2"]
    move_alias(f"{uri}/m3", "candidate", "v0001")
    for reads in (["GetObject"], [], []):
        with count_requests() as sent:
            found = follower.poll()
        assert sorted(sent) == [*reads, "ListObjectsV2"]
    assert found.models["m3"].mapping == {"candidate": "v0001", "final": "v0001"}
    assert found.models["m4"].mapping == {"final": "v0001"}


def test_every_move_is_seen_and_equals_what_is_read_anew(models_uri):
    follower = Follower(models_uri)
    for step in range(8):
        name = ("triage", "billing")[step % 2]
        move_alias(f"{models_uri}/{name}", "final", f"v000{1 + (step // 2 + 1) % 2}")
        found = follower.poll()
        assert found.unreadable == {}
        for model, aliases in found.models.items():
            assert aliases.mapping == read_aliases(f"{models_uri}/{model}").mapping
            assert aliases.history == read_aliases(f"{models_uri}/{model}").history


def test_on_a_folder_a_move_whose_summary_was_never_written_is_seen(tmp_path):
    uri = f"{tmp_path}/models/triage"
    for number in range(2):
        publish(uri, make_draft(), write_bare_adapter(tmp_path / f"a{number}", b"weights"))
    follower = Follower(f"{tmp_path}/models")
    assert follower.poll().models == {}
    move_alias(uri, "final", "v0001")
    storage.delete(f"{uri}/aliases.json")
    assert follower.poll().models["triage"].mapping == {"final": "v0001"}
    move_alias(uri, "final", "v0002")
    summary = storage.read_bytes(f"{uri}/aliases.json")
    move_alias(uri, "final", "v0001")
    storage.write_bytes(f"{uri}/aliases.json", summary)
    assert storage.exists(f"{uri}/{HISTORY_FOLDER}/000003.json")
    assert follower.poll().models["triage"].mapping == {"final": "v0001"}


def test_a_damaged_or_lost_list_is_named_and_leaves_the_model_as_it_was(models_uri):
    follower = Follower(models_uri)
    follower.poll()
    place = f"{models_uri}/triage/aliases.json"
    good = storage.read_bytes(place)
    for damage in (lambda: storage.write_bytes(place, b"{"), lambda: storage.delete(place)):
        damage()
        found = follower.poll()
        assert set(found.unreadable) == {"triage"} and "aliases.json" in found.unreadable["triage"]
        assert {name: item.mapping for name, item in found.models.items()} == {
            "billing": {"final": "v0001"},
            "triage": {"final": "v0001"},
        }
        storage.write_bytes(place, good)
        assert follower.poll().unreadable == {}


def test_a_registry_that_cannot_be_listed_is_an_error(bucket):
    with pytest.raises(StorageError, match="bucket does not exist"):
        Follower("s3://no-such-bucket/models").poll()
    assert Follower(f"{bucket}/nothing/models").poll().models == {}
