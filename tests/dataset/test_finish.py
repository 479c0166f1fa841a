"""From a ledger to a finished dataset and back, without Ray: its objects are as asking actors leave them."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydistill.core.errors import ConfigError, ConflictError, DatasetError, QualityError
from raydistill.core.records import Drop, Manifest, Shard
from raydistill.dataset import ledger, shards
from raydistill.dataset.finish import Terms, check_first, finish_dataset
from raydistill.dataset.keep import Origin
from raydistill.dataset.ledger import choose_compaction, compact, find_unnamed, read_marks
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.dataset.rules import Rules
from raydistill.dataset.write import check_output, open_dataset, put_manifest
from tests.dataset.ledger import DRAFT, commit, make_answer, make_id, pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    named = [
        commit(folder, "x-0", [make_answer("a"), make_answer("b", finish_reason="length")]),
        commit(folder, "x-1", [make_answer("c", error="x", finish_reason="error"), make_answer("d", text=" ")]),
    ]
    open_dataset(str(folder), dataclasses.replace(DRAFT, answers=named))
    commit(folder, "y-0", [make_answer("c"), make_answer("a", text="a second time"), make_answer("e")])
    return folder


def finish(folder: Path, *names: str, **changes: object) -> Manifest:
    return finish_dataset(str(folder), pack(*names), DRAFT, str(folder), Terms(**changes))


def read_names(folder: Path) -> set[str]:
    return {example.messages[0]["content"].split()[1] for example in read_examples(str(folder))[0]}


def test_finish_dataset_accounts_for_all_and_counts_an_id_once(folder: Path) -> None:
    manifest = finish(folder, "e", "d", "c", "b", "a")
    examples, read_back = read_examples(str(folder))
    assert read_back == manifest == read_manifest(str(folder))
    assert {example.response for example in examples} == {"answer a", "answer c", "answer e"}
    assert [example.id for example in examples] == sorted(map(make_id, "ace"))
    assert examples[0].response_tokens == [4, 5, 2]
    assert manifest.counts == {"asked": 5, "answered": 5, "kept": 3, "dropped": {"empty": 1, "truncated": 1}}
    assert manifest.tokens == {"prompt": 50, "cached": 30, "completion": 15}
    (drops,) = manifest.drops
    reasons = {row["reason"]: row["detail"] for row in pq.read_table(folder / drops.uri).to_pylist()}
    assert reasons == {"empty": "", "truncated": "no end after 3 tokens"}


def test_equal_answers_end_as_one_example_and_a_drop(folder: Path) -> None:
    commit(folder, "z-0", [make_answer(name, text="The very same answer to both of them.") for name in "pq"])
    manifest = finish(folder, *"apq", rules=Rules(near_copies=1.0))
    assert manifest.counts == {"asked": 3, "answered": 3, "kept": 2, "dropped": {"duplicate": 1}}
    stays, goes = sorted(map(make_id, "pq"))
    assert {example.id for example in read_examples(str(folder))[0]} == {make_id("a"), stays}
    (drops,) = manifest.drops
    (drop,) = pq.read_table(folder / drops.uri).to_pylist()
    assert (drop["id"], drop["reason"]) == (goes, "duplicate")
    assert drop["detail"] == f"a near copy of {stays} (similarity 1.00)"


def test_finish_dataset_joins_the_ledger_and_leaves_no_small_object(folder: Path) -> None:
    (ledger,) = finish(folder, "a", "c").answers
    assert ledger.rows == 7
    assert list((folder / "answers").rglob("*.parquet")) == [folder / ledger.uri]
    commit(folder, "z-0", [make_answer("f")])
    (ledger,) = finish(folder, "a", "f").answers
    assert ledger.rows == 8
    assert list((folder / "answers").rglob("*.parquet")) == [folder / ledger.uri]


def test_what_a_kill_left_behind_counts_once(folder: Path) -> None:
    named = read_manifest(str(folder)).answers
    (unnamed,) = find_unnamed(str(folder), named, Origin.of(DRAFT))
    assert (unnamed.pairs, unnamed.kept, unnamed.dropped, unnamed.shard.rows) == (3, 3, {}, 3)
    shards = [*named, unnamed.shard]
    marks = read_marks(str(folder), shards)
    assert sorted(marks.ids.tolist()) == sorted(pack(*"abcde").tolist())
    assert not marks.failed.any()
    assert read_marks(str(folder), named).failed.sum() == 1
    # Joined and named, but its parts not deleted yet: they hold nothing new.
    whole = compact(str(folder), shards)
    assert find_unnamed(str(folder), [whole], Origin.of(DRAFT)) == []
    # A row that had failed was asked again, and its answer was committed just before the kill.
    failed = commit(folder, "y-0", [make_answer("f", error="refused")])
    commit(folder, "z-0", [make_answer("f")])
    (unnamed,) = find_unnamed(str(folder), [whole, failed], Origin.of(DRAFT))
    assert (unnamed.shard.uri, unnamed.kept) == ("answers/new/z-0.parquet", 1)


def test_half_an_object_is_told_and_never_read(folder: Path) -> None:
    with pytest.raises(DatasetError, match="1 of 2 answers are not there"):
        finish(folder, "a", "f")
    (folder / "answers" / "new" / "x-0.parquet").write_bytes(b"half a fi")
    with pytest.raises(DatasetError, match=r"x-0\.parquet"):
        finish(folder, "a")


def test_all_turns_of_a_query_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "talk"
    first, second = make_answer("t"), make_answer("t", turn=1, text="later", error="x", finish_reason="error")
    second = dataclasses.replace(second, id=f"{second.id}-1")
    retried = [first, dataclasses.replace(second, error=None, finish_reason="stop")]
    open_dataset(str(folder), DRAFT)
    shards = [commit(folder, "a", [first, second, make_answer("u")]), commit(folder, "b", retried)]
    assert read_marks(str(folder), shards[:1]).failed.sum() == 1
    assert not read_marks(str(folder), shards).failed.any()
    manifest = finish(folder, "t", "u")
    assert manifest.counts == {"asked": 3, "answered": 3, "kept": 3, "dropped": {}}
    assert {example.response for example in read_examples(str(folder))[0]} == {"answer t", "later", "answer u"}


def test_finish_dataset_again_gives_the_same_bytes_and_no_old_shards(folder: Path) -> None:
    one = finish(folder, "a", "c", "b")
    assert finish(folder, "a", "c", "b") == one
    other = finish(folder, "a")
    assert {path.name for path in folder.glob("*.parquet")} == {shard.uri for shard in other.shards}


def test_finish_dataset_writes_large_datasets_in_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 2)
    manifest = finish(folder, "a", "c", "e")
    assert [shard.rows for shard in manifest.shards] == [2, 1]
    assert read_names(folder) == set("ace")
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 100)
    monkeypatch.setattr(shards, "BYTES_PER_SHARD", 1)
    assert len(finish(folder, "a", "c", "e").shards) == 1  # never cut within what is added at once


def test_finish_dataset_without_one_usable_answer_stays_unfinished(folder: Path) -> None:
    with pytest.raises(QualityError, match="not one of 2 answers is usable"):
        finish(folder, "b", "d")
    with pytest.raises(DatasetError, match="is not finished"):
        read_examples(str(folder))


def test_too_many_drops_fail_the_job_and_keep_what_was_kept(folder: Path) -> None:
    with pytest.raises(QualityError, match="2 of 5 answers were dropped") as caught:
        finish(folder, *"abcde", max_dropped_share=0.3)
    assert "1 truncated: no end after 3 tokens" in str(caught.value)
    manifest = read_manifest(str(folder))
    assert not manifest.finished
    assert manifest.counts["kept"] == 3 == manifest.shards[0].rows
    assert finish(folder, *"abcde", max_dropped_share=0.4).finished


def test_the_table_of_reasons_counts_all_answers_and_no_query(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 1)
    commit(folder, "z-0", [make_answer(name, finish_reason="length") for name in "xyz"])
    near = [Drop(None, make_id(name), 0, "near_duplicate", "like another") for name in "pq"]
    with pytest.raises(QualityError, match="5 of 8 answers were dropped") as caught:
        finish(folder, *"abcdexyz", max_dropped_share=0.3, not_asked=near)
    assert len(read_manifest(str(folder)).drops) == 7
    table = str(caught.value).partition("Dropped:\n")[2]
    assert table == "         4 truncated: no end after 3 tokens\n         1 empty: "


def test_first_answers_that_cannot_be_used_are_shown(folder: Path) -> None:
    finish(folder, *"abcde")
    manifest = read_manifest(str(folder))
    check_first(str(folder), manifest, np.sort(pack(*"abc")), 2)
    with pytest.raises(QualityError, match="of the first 3 answers 2 can be used") as caught:
        check_first(str(folder), manifest, np.sort(pack(*"abc")), 3)
    assert "1 truncated" in str(caught.value)
    with pytest.raises(QualityError, match="of the first 4 answers 2 can be used"):
        check_first(str(folder), manifest, np.sort(pack(*"abcz")), 3)  # nobody has answered z


def test_a_first_conversation_counts_once_and_only_with_all_its_answers(tmp_path: Path) -> None:
    folder = tmp_path / "talk"
    answers = []
    for name, fault in (("a", {}), ("b", {"text": " "}), ("c", {})):
        first = make_answer(name)
        answers += [first, make_answer(name, **{"id": f"{first.id}-1", "turn": 1, "text": "later", **fault})]
        answers += [make_answer(name, id=f"{first.id}-2", turn=2, text="last")]
    draft = dataclasses.replace(DRAFT, answers=[commit(folder, "x-0", answers)])
    open_dataset(str(folder), draft)
    check_first(str(folder), draft, np.sort(pack(*"abc")), 2)
    with pytest.raises(QualityError, match="of the first 3 conversations 2 can be used"):
        check_first(str(folder), draft, np.sort(pack(*"abc")), 3)


def test_small_objects_are_joined_when_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [Shard(f"answers/new/{index}-a.parquet", 10, 100, "") for index in range(5)]
    large = Shard("answers/ledger-a.parquet", 10, 100, "")
    assert choose_compaction(small) == []
    monkeypatch.setattr(ledger, "COMPACT_ROWS", 30)
    assert choose_compaction([large, *small]) == small[:3]
    assert choose_compaction([large, *small[:2]]) == []
    assert choose_compaction([large, *small[:2]], at_end=True) == [large, *small[:2]]
    assert choose_compaction([dataclasses.replace(large, rows=20), *small[:2]], at_end=True) == small[:2]
    in_work = {"1", "3"}  # request objects, by which small objects are named
    assert choose_compaction([large, *small], in_work=in_work) == [small[0], small[2], small[4]]
    monkeypatch.setattr(ledger, "COMPACT_BYTES", 200)
    assert choose_compaction([large, *small]) == small[:2]
    assert choose_compaction([large], at_end=True) == []


def test_read_examples_refuses_a_changed_shard(folder: Path) -> None:
    manifest = finish(folder, "a", "c")
    path = folder / manifest.shards[0].uri
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DatasetError, match="sha256 differs"):
        read_examples(str(folder))


def test_read_examples_of_another_tokenizer_have_no_tokens(folder: Path) -> None:
    finish(folder, "a")
    assert read_examples(str(folder), tokenizer_digest="t")[0][0].response_tokens == [4, 5, 2]
    assert read_examples(str(folder), tokenizer_digest="u")[0][0].response_tokens is None


def test_put_manifest_notices_another_writer(folder: Path) -> None:
    etag = open_dataset(str(folder), DRAFT)
    put_manifest(str(folder), dataclasses.replace(DRAFT, prompt_digest="other"), etag)
    with pytest.raises(ConflictError, match="another create_data"):
        put_manifest(str(folder), DRAFT, etag)


def test_check_output_refuses_what_it_did_not_write(folder: Path, tmp_path: Path) -> None:
    check_output(str(folder), str(folder), DRAFT.fingerprint)
    check_output(str(tmp_path / "new"), str(tmp_path / "new"), "g")
    with pytest.raises(ConflictError, match="another fingerprint"):
        check_output(str(folder), str(folder), "g")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        check_output(str(file), str(file), "g")
    with pytest.raises(ConfigError, match="holds other files"):
        check_output(str(tmp_path), str(tmp_path), "g")
    bare = tmp_path / "bare.jsonl"
    bare.write_text("{}")
    with pytest.raises(ConfigError, match=r"not of create_data"):
        check_output(str(bare), f"{bare}.d", "g")
