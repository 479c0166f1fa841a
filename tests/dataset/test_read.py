"""What `read_examples` takes for a dataset: a ledger's folder, its exported lines, bare lines, and what it refuses."""

import logging
from pathlib import Path

import pytest

from raydistill.core import storage
from raydistill.core.errors import DatasetError, NotFoundError
from raydistill.core.records import digest
from raydistill.dataset.finish import finish_dataset
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.dataset.write import open_dataset
from tests.dataset.ledger import DRAFT, commit, make_answer, pack
from tests.jsonl import write_jsonl


def test_jsonl_is_read_from_its_ledger_until_it_is_edited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output, folder = tmp_path / "out.jsonl", tmp_path / "out.jsonl.d"
    open_dataset(str(folder), DRAFT)
    commit(folder, "a", [make_answer("a", text="ü \u2028 \x85 |"), make_answer("b")])
    manifest = finish_dataset(str(folder), pack("a", "b"), DRAFT, str(output))
    examples, read_back = read_examples(str(output))
    assert (read_back, examples[0].response_tokens) == (manifest, [4, 5, 2])

    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(next(line for line in lines if "ü".encode() in line))
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
