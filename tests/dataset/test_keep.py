"""The keep rules, the ledger's rows, and which rows of a ledger count."""

import pyarrow as pa
import pytest

from raydistill.core.answers import ANSWER_SCHEMA, TOO_LONG, answer_from_row, answer_id, answer_to_row, row_seed
from raydistill.core.records import Answer, Drop, Example, Usage
from raydistill.dataset.keep import Origin, keep
from raydistill.dataset.ledger import best_rows

ORIGIN = Origin("model@revision", "p" * 32)


def make_answer(**changes: object) -> Answer:
    values = {
        "id": "a1",
        "query_id": "q1",
        "sample_index": 2,
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
    table = pa.Table.from_pylist([answer_to_row(answer, "a1-0")], schema=ANSWER_SCHEMA)
    assert answer_from_row(table.to_pylist()[0]) == answer


def test_best_rows_prefers_answers_to_failures_and_counts_an_id_once() -> None:
    rows = [("a", None), ("a", None), ("b", "x"), ("b", None), ("b", "y"), ("c", "x"), ("c", "y")]
    table = pa.table({"id": [row[0] for row in rows], "error": pa.array([row[1] for row in rows], pa.string())})
    assert best_rows(table) == {"a": 0, "b": 3, "c": 6}


def test_ids_depend_on_all_that_determines_an_answer() -> None:
    query = [{"role": "user", "content": "a"}]
    ids = {answer_id(query, "f", 0), answer_id(query, "f", 1), answer_id(query, "g", 0), answer_id([], "f", 0)}
    assert len(ids) == 4
    assert answer_id(query, "f", 0) == answer_id([{"content": "a", "role": "user"}], "f", 0)
    assert all(0 <= row_seed(identifier) < 2**31 for identifier in ids)
    assert len({row_seed(identifier) for identifier in ids}) == 4
