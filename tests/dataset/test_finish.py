"""From a ledger to a finished dataset and back, without Ray: its objects are written here as Ray Data leaves them."""

import dataclasses
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raydistill.core import storage
from raydistill.core.errors import ConfigError, ConflictError, DatasetError, NotFoundError
from raydistill.core.records import digest
from raydistill.dataset import finish
from raydistill.dataset.finish import finish_dataset
from raydistill.dataset.ledger import committed_files, count_answers, count_rows
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.dataset.write import check_output, open_dataset, put_manifest
from tests.dataset.ledger import DRAFT, commit, make_answer
from tests.jsonl import write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    open_dataset(str(folder), DRAFT)
    commit(folder, "part-a_000000", [make_answer("a"), make_answer("b", finish_reason="length")])
    commit(folder, "part-a_000001", [make_answer("c", error="x", finish_reason="error"), make_answer("d", text=" ")])
    commit(folder, "part-b_000000", [make_answer("c"), make_answer("a", text="a second time"), make_answer("e")])
    commit(folder, "part-b_000001", [make_answer("f")], pending=True)
    return folder


def test_finish_dataset_accounts_for_all_and_counts_an_id_once(folder: Path) -> None:
    manifest = finish_dataset(str(folder), ["e", "d", "c", "b", "a"], DRAFT, str(folder))
    examples, read_back = read_examples(str(folder))
    assert read_back == manifest == read_manifest(str(folder))
    assert [example.id for example in examples] == ["e", "c", "a"]
    assert [example.response for example in examples] == ["answer e", "answer c", "answer a"]
    assert examples[0].response_tokens == [4, 5, 2]
    assert manifest.counts == {"asked": 5, "answered": 5, "kept": 3, "dropped": {"empty": 1, "truncated": 1}}
    assert manifest.tokens == {"prompt": 50, "cached": 30, "completion": 15}
    assert sum(shard.rows for shard in manifest.answers) == 7
    drops = pq.read_table(folder / manifest.drops[0].uri).to_pylist()
    assert [(row["reason"], row["detail"]) for row in drops] == [
        ("empty", ""),
        ("truncated", "no end after 3 tokens"),
    ]


def test_uncommitted_objects_of_the_ledger_never_count(folder: Path) -> None:
    assert [name.rpartition("-")[0] for name in committed_files(str(folder))] == [
        "part-a_000000",
        "part-a_000001",
        "part-b_000000",
    ]
    (folder / "answers" / "part-a_000009-0.parquet").write_bytes(b"half a fi")
    good, failures = count_answers(str(folder))
    assert good == {"a", "b", "c", "d", "e"}
    assert failures == {"c": 1}
    assert count_rows(str(folder), "part-b_000000") == 3
    with pytest.raises(DatasetError, match="1 of 2 answers are not there"):
        finish_dataset(str(folder), ["a", "f"], DRAFT, str(folder))


def test_finish_dataset_again_gives_the_same_bytes_and_no_old_shards(folder: Path) -> None:
    one = finish_dataset(str(folder), ["a", "c", "b"], DRAFT, str(folder))
    assert finish_dataset(str(folder), ["a", "c", "b"], DRAFT, str(folder)) == one
    other = finish_dataset(str(folder), ["a"], DRAFT, str(folder))
    assert {path.name for path in folder.glob("*.parquet")} == {shard.uri for shard in other.shards}


def test_finish_dataset_writes_large_datasets_in_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "ROWS_PER_SHARD", 2)
    manifest = finish_dataset(str(folder), ["a", "c", "e"], DRAFT, str(folder))
    assert [shard.rows for shard in manifest.shards] == [2, 1]
    assert [example.id for example in read_examples(str(folder))[0]] == ["a", "c", "e"]


def test_finish_dataset_without_one_usable_answer_stays_unfinished(folder: Path) -> None:
    with pytest.raises(DatasetError, match="not one of 2 answers is usable"):
        finish_dataset(str(folder), ["b", "d"], DRAFT, str(folder))
    with pytest.raises(DatasetError, match="is not finished"):
        read_examples(str(folder))


def test_read_examples_refuses_a_changed_shard(folder: Path) -> None:
    manifest = finish_dataset(str(folder), ["a", "c"], DRAFT, str(folder))
    path = folder / manifest.shards[0].uri
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DatasetError, match="sha256 differs"):
        read_examples(str(folder))


def test_read_examples_of_another_tokenizer_have_no_tokens(folder: Path) -> None:
    finish_dataset(str(folder), ["a"], DRAFT, str(folder))
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


def test_jsonl_is_read_from_its_ledger_until_it_is_edited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output, folder = tmp_path / "out.jsonl", tmp_path / "out.jsonl.d"
    open_dataset(str(folder), DRAFT)
    commit(folder, "part-a_000000", [make_answer("a", text="ü \u2028 \x85 |"), make_answer("b")])
    manifest = finish_dataset(str(folder), ["a", "b"], DRAFT, str(output))
    examples, read_back = read_examples(str(output))
    assert (read_back, examples[0].response_tokens) == (manifest, [4, 5, 2])

    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(lines[0])
    with caplog.at_level(logging.WARNING):
        examples, read_back = read_examples(str(output))
    assert read_back is None
    assert [(example.response, example.response_tokens) for example in examples] == [("ü \u2028 \x85 |", None)]
    assert "was changed" in caplog.text


def test_bare_jsonl_is_taken_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turn = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write_jsonl(tmp_path / "bare.jsonl", turn, "", turn)
    with caplog.at_level(logging.WARNING):
        examples, manifest = read_examples(str(path))
    assert manifest is None
    assert "nothing is known" in caplog.text
    assert len({example.id for example in examples}) == 2
    assert {example.query_id for example in examples} == {digest([{"role": "user", "content": "a"}])}


def test_bare_jsonl_names_every_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "bare.jsonl"
    lines = [
        "[",
        "[]",
        "{}",
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\ud800"}]}',
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(DatasetError) as caught:
        read_examples(str(path))
    for number in range(1, len(lines) + 1):
        assert f"line {number}:" in str(caught.value)


@pytest.mark.parametrize("name", ["none", "none.jsonl"])
def test_read_examples_of_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        read_examples(str(tmp_path / name))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="no examples"):
        read_examples(str(tmp_path / "empty.jsonl"))


def test_read_manifest_of_something_else(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "manifest.json"), b'{"shards": [], "drops": [], "answers": []}')
    with pytest.raises(DatasetError, match="is no manifest"):
        read_manifest(str(tmp_path))
    storage.write_bytes(str(tmp_path / "manifest.json"), b"[1]")
    with pytest.raises(DatasetError, match="is no manifest"):
        read_manifest(str(tmp_path))
