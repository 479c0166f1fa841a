"""Two writers at once: of two promotions one wins and the other is told, no move is lost, no alias is left dangling."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raydistill.core import storage
from raydistill.core.errors import ConflictError, NotFoundError, StorageError
from raydistill.registry.aliases import move_alias, read_aliases
from raydistill.registry.delete import delete_version
from raydistill.registry.publish import publish
from raydistill.registry.resolve import promote, rollback
from raydistill.registry.versions import list_versions, read_version
from tests.drafts import make_draft, write_bare_adapter
from tests.moto_bucket import open_bucket
from tests.registry.racer import first_label, race, second_label

ROUNDS = 25


@pytest.fixture(scope="module")
def bucket():
    with open_bucket("races") as uri:
        yield uri


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path):
    root = str(tmp_path) if request.param == "folder" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    uri = f"{root}/models/triage"
    adapter = write_bare_adapter(tmp_path / "adapter", b"weights")
    for _ in range(4):
        publish(uri, make_draft(), adapter)
    return uri


def check_history(aliases, alias="final"):
    """Each move begins where the one before it ended, and the last one says where the alias points."""
    moves = aliases.moves(alias)
    assert [move["from"] for move in moves] == [None, *(move["to"] for move in moves[:-1])]
    assert aliases.mapping[alias] == moves[-1]["to"]
    assert len({move["id"] for move in aliases.history}) == len(aliases.history)


def run_racers(uri, context, worker):
    barrier, told = context.Barrier(2), context.Queue()
    racers = [worker(target=race, args=(uri, label, ROUNDS, barrier, told)) for label in (first_label, second_label)]
    for racer in racers:
        racer.start()
    won = [told.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join(timeout=30)
    return won


def test_two_processes_promote_at_once_and_exactly_one_wins_each_round(uri):
    context = multiprocessing.get_context("spawn")
    first, second = run_racers(uri, context, context.Process)
    assert sorted(first + second) == list(range(ROUNDS)), "each round has one winner"
    aliases = read_aliases(uri)
    assert len(aliases.moves("final")) == ROUNDS
    check_history(aliases)


def test_many_threads_promote_at_once_and_the_history_holds_each_won_move(uri):
    barrier = threading.Barrier(4)

    def take_part(number):
        won = 0
        for turn in range(5):
            barrier.wait(timeout=30)
            try:
                before = read_aliases(uri)
                label = f"v{(number + turn) % 4 + 1:04d}"
                won += move_alias(uri, "final", label, before).history != before.history
            except ConflictError as error:
                assert "was moved from" in str(error) and "Nothing was changed" in str(error)
        return won

    with ThreadPoolExecutor(4) as pool:
        won = sum(pool.map(take_part, range(4)))
    aliases = read_aliases(uri)
    assert len(aliases.history) == won >= 5
    check_history(aliases)


def test_a_promotion_by_an_old_look_is_a_conflict_that_names_the_other(uri):
    seen = read_aliases(uri)
    move_alias(uri, "final", "v0001", seen)
    with pytest.raises(
        ConflictError, match=r"final was moved from nothing to v0001 by .*@.* at 20.*about to be moved to"
    ):
        promote(uri, "final", "v0002", seen=seen)
    assert read_aliases(uri).mapping == {"final": "v0001"}
    move_alias(uri, "candidate", "v0003")
    move_alias(uri, "final", "v0002", read_aliases(uri))  # another alias's move in between is none of its business
    late = read_aliases(uri)
    move_alias(uri, "final", "v0001")
    move_alias(uri, "final", "v0002")  # back where it was: it was moved all the same
    with pytest.raises(ConflictError):
        move_alias(uri, "final", "v0003", late)


def test_deleting_and_promoting_at_once_never_leaves_an_alias_without_its_version(tmp_path):
    adapter = write_bare_adapter(tmp_path / "adapter", b"weights")
    outcomes = set()
    for turn in range(30):
        uri = f"{tmp_path}/{turn}/models/triage"
        publish(uri, make_draft(), adapter)
        barrier = threading.Barrier(2)

        def attempt(action, *arguments, start=barrier):
            start.wait(timeout=30)
            try:
                action(*arguments)
            except (ConflictError, NotFoundError):
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            deleted = pool.submit(attempt, delete_version, uri, "v0001")
            promoted = pool.submit(attempt, promote, uri, "final", "v0001")
        assert deleted.result() != promoted.result(), "one of the two wins"
        assert (read_aliases(uri).mapping == {"final": "v0001"}) == promoted.result()
        assert len(list_versions(uri)) == promoted.result()
        outcomes.add(promoted.result())
    assert outcomes


def test_a_deletion_between_look_and_move_refuses_the_move(uri, monkeypatch):
    from raydistill.registry import aliases

    def delete_first(*arguments):
        found = read_version(*arguments)
        monkeypatch.undo()
        delete_version(uri, "v0002")
        return found

    monkeypatch.setattr(aliases, "read_version", delete_first)
    with pytest.raises(NotFoundError, match="v0002 was deleted; known versions: v0001, v0003, v0004"):
        move_alias(uri, "final", "v0002")
    assert read_aliases(uri).mapping == {}


def test_a_writer_that_dies_after_its_entry_has_moved_the_alias(tmp_path, monkeypatch):
    uri = f"{tmp_path}/models/triage"
    adapter = write_bare_adapter(tmp_path / "adapter", b"weights")
    publish(uri, make_draft(), adapter), publish(uri, make_draft(), adapter)
    move_alias(uri, "final", "v0001")
    write = storage.write_bytes

    def dying_write(place, data, if_match=None):
        if place.endswith("aliases.json"):
            raise KeyboardInterrupt
        return write(place, data, if_match)

    monkeypatch.setattr(storage, "write_bytes", dying_write)
    with pytest.raises(KeyboardInterrupt):
        move_alias(uri, "final", "v0002")
    monkeypatch.undo()
    assert read_aliases(uri).mapping == {"final": "v0002"}
    assert rollback(uri, "final").mapping == {"final": "v0001"}
    check_history(read_aliases(uri))
    assert [move["to"] for move in read_aliases(uri).history] == ["v0001", "v0002", "v0001"]


def test_a_write_whose_answer_was_lost_is_not_taken_for_a_conflict(bucket, tmp_path, monkeypatch):
    uri = f"{bucket}/{tmp_path.name}/models/triage"
    publish(uri, make_draft(), write_bare_adapter(tmp_path / "adapter", b"weights"))
    write = storage.write_bytes

    def write_twice(place, data, if_match=None):
        write(place, data, if_match)
        return write(place, data, if_match)  # as boto3 does where the first answer does not come

    monkeypatch.setattr(storage, "write_bytes", write_twice)
    assert move_alias(uri, "final", "v0001").mapping == {"final": "v0001"}
    monkeypatch.undo()
    assert len(read_aliases(uri).history) == 1


def test_a_folder_without_hard_links_still_has_one_winner(tmp_path, monkeypatch):
    import errno
    from pathlib import Path

    def refuse(self, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    place = str(tmp_path / "entry.json")
    storage.write_bytes(place, b"first", if_match=storage.ABSENT)
    with pytest.raises(ConflictError):
        storage.write_bytes(place, b"second", if_match=storage.ABSENT)
    assert storage.read_bytes(place) == b"first"


def test_a_full_disk_is_no_conflict(tmp_path, monkeypatch):
    import errno
    from pathlib import Path

    def refuse(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_bytes(str(tmp_path / "entry.json"), b"first", if_match=storage.ABSENT)
    assert list(tmp_path.iterdir()) == []
