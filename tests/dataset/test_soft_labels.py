"""Soft labels of a finished dataset: read back as arrays, left out where they would be of other tokens."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from raydistill.core.answers import answer_to_row, answers_to_table
from raydistill.core.records import to_json
from raydistill.dataset.export import to_jsonl
from raydistill.dataset.keep import Origin, keep_table
from raydistill.dataset.layout import write_table
from raydistill.dataset.read import read_examples
from tests.dataset.answers import make_answer
from tests.dataset.ledger import DRAFT

IDS = np.array([[1, 2], [3, 4], [5, -1]], dtype=np.int32)
LOGPROBS = np.array([[0, -1], [-2, -3.5], [-4, -65504]], dtype=np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    answers = [make_answer(id=name, top_ids=IDS, top_logprobs=LOGPROBS) for name in "ab"]
    table = answers_to_table([answer_to_row(answer) for answer in answers], 2)
    examples, _ = keep_table(table, Origin("m@r", DRAFT.prompt_digest))
    shard = write_table(str(tmp_path), "part-0.parquet", examples)
    manifest = dataclasses.replace(DRAFT, finished=True, shards=[shard])
    (tmp_path / "manifest.json").write_text(to_json(manifest))
    return str(tmp_path)


def test_read_examples_gives_soft_labels_as_they_were_packed(folder: str) -> None:
    examples, _ = read_examples(folder, tokenizer_digest="t")
    assert [example.id for example in examples] == ["a", "b"]
    for example in examples:
        assert example.top_ids.dtype == np.int32 and np.array_equal(example.top_ids, IDS)
        assert example.top_logprobs.dtype == np.float16 and np.array_equal(example.top_logprobs, LOGPROBS)
        assert len(example.top_ids) == len(example.response_tokens)


def test_read_examples_of_another_tokenizer_have_no_soft_labels(folder: str) -> None:
    for example in read_examples(folder, tokenizer_digest="u")[0]:
        assert (example.response_tokens, example.top_ids, example.top_logprobs) == (None, None, None)


def test_a_jsonl_has_no_soft_labels(folder: str) -> None:
    examples, _ = read_examples(folder)
    bare = [dataclasses.replace(example, top_ids=None, top_logprobs=None) for example in examples]
    assert to_jsonl(examples) == to_jsonl(bare)
    assert b"top_" not in to_jsonl(examples)
