"""The keep rules, the ledger's rows, and which rows of a ledger count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydistill.core.answers import ANSWER_SCHEMA, TOO_LONG, answer_from_row, answer_id, answer_to_row, row_seed
from raydistill.core.records import Answer, Drop, Example, Usage
from raydistill.dataset.keep import Origin, keep
from raydistill.dataset.pick import pick_rows
from tests.dataset.ledger import commit, pack
from tests.dataset.ledger import make_answer as make_ledger_answer

ORIGIN = Origin("model@revision", "p" * 32)


def make_answer(**changes: object) -> Answer:
    values = {
        "id": "a1",
        "query_id": "q1",
        "sample_index": 2,
        "turn": 0,
        "messages": [{"role": "user", "content": "Grüße \u2028 <|im_end|>"}],
        "text": "yes",
        "tokens": [5, 6, 2],
        "finish_reason": "stop",
        "usage": Usage(10, 4, 3),
        "latency_seconds": 0.25,
    }
    return Answer(**{**values, **changes})


def test_keep_makes_an_example_without_p_and_with_the_stop_token() -> None:
    verdict = keep(make_answer(), ORIGIN)
    assert verdict == Example(
        "a1",
        "q1",
        [{"role": "user", "content": "Grüße \u2028 <|im_end|>"}],
        "yes",
        [5, 6, 2],
        "model@revision",
        "p" * 32,
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finish_reason": "length"}, "truncated"),
        ({"finish_reason": "length", "text": ""}, "truncated"),
        ({"text": ""}, "empty"),
        ({"text": " \n "}, "empty"),
        ({"error": "timeout", "finish_reason": "error"}, "failed"),
        ({"error": "timeout", "finish_reason": "stop"}, "failed"),
        ({"finish_reason": "abort"}, "failed"),
        ({"error": "300 tokens", "finish_reason": TOO_LONG}, "too_long"),
    ],
)
def test_keep_drops_with_a_reason(changes: dict, reason: str) -> None:
    verdict = keep(make_answer(**changes), ORIGIN)
    assert isinstance(verdict, Drop)
    assert (verdict.query_id, verdict.sample_index, verdict.reason) == ("q1", 2, reason)


@pytest.mark.parametrize(
    "answer",
    [
        make_answer(),
        make_answer(error="x", text="", tokens=[]),
        make_answer(top_ids=[[1, 2], [3, 4]], top_logprobs=[[-0.5, -1.5], [-0.25, -2.0]]),
    ],
)
def test_answer_survives_the_ledger(answer: Answer) -> None:
    table = pa.Table.from_pylist([answer_to_row(answer)], schema=ANSWER_SCHEMA)
    assert answer_from_row(table.to_pylist()[0]) == answer


def test_the_first_good_answer_is_picked_else_the_last_failure(tmp_path: Path) -> None:
    rows = [("a", None), ("a", None), ("b", "x"), ("b", None), ("b", "y"), ("c", "x"), ("c", "y")]
    answers = [
        replace(make_ledger_answer(name), error=error, text=str(index)) for index, (name, error) in enumerate(rows)
    ]
    shards = [commit(tmp_path, "one", answers[:3]), commit(tmp_path, "two", answers[3:])]
    tables = pick_rows(str(tmp_path), shards, np.sort(pack("a", "b", "c")))
    assert {text for table in tables for text in table["text"].to_pylist()} == {"0", "3", "6"}
    (table,) = pick_rows(str(tmp_path), shards, pack("b"))
    assert table["text"].to_pylist() == ["3"]


def test_ids_depend_on_all_that_determines_an_answer() -> None:
    ids = {answer_id("q", "f", 0), answer_id("q", "f", 1), answer_id("q", "g", 0), answer_id("r", "f", 0)}
    assert len(ids) == 4
    assert all(0 <= row_seed(identifier) < 2**31 for identifier in ids)
    assert len({row_seed(identifier) for identifier in ids}) == 4
