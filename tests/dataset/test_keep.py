"""The keep pass over whole tables says what it says of each row; which rows of a ledger count; the ids of rows."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.answers import TOO_LONG, answer_id, answer_schema, answer_to_row, answers_to_table, row_seed
from raydistill.core.records import Answer, Drop, Example
from raydistill.core.topk import read_rows
from raydistill.dataset.judge import Judgement
from raydistill.dataset.keep import Origin, keep, keep_table
from raydistill.dataset.layout import DROP_SCHEMA, EXAMPLE_SCHEMA, example_schema, examples_from_table
from raydistill.dataset.pick import pick_rows
from raydistill.dataset.quality import JudgeConfig, QualityConfig
from raydistill.dataset.rules import Rules, compile_rules
from tests.dataset.answers import make_answer
from tests.dataset.ledger import commit, pack
from tests.dataset.ledger import make_answer as make_ledger_answer

ORIGIN = Origin("model@revision", "p" * 32)
LABELS = np.array([[1, 2], [3, 4], [5, -1]], dtype=np.int32), np.array([[0, -1], [-2, -3], [-4, -9]], dtype=np.float16)


def to_table(answers: Sequence[Answer], top_logprobs: int | None = None) -> pa.Table:
    return answers_to_table([answer_to_row(answer) for answer in answers], top_logprobs)


ANSWERS = st.builds(
    make_answer,
    text=st.text() | st.sampled_from(["yes", '{"a": 1}', "{}", " \x1c\u2003\u3000\x85", "\u200b", "I cannot help."]),
    tokens=st.lists(st.integers(0, 9), max_size=6),
    finish_reason=st.sampled_from(["stop"] * 5 + ["length", "error", TOO_LONG, ""]),
    error=st.sampled_from([None] * 6 + ["x" * 600]),
    sample_index=st.integers(0, 9),
)
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "drop_refusals": st.booleans(),
        "min_tokens": st.integers(0, 4),
        "max_tokens": st.integers(4, 5),
        "min_chars": st.integers(0, 5),
        "must_match": st.just(["[a-z]"]),
        "must_not_match": st.just(["s$"]),
        "json_schema": st.just({"required": ["a"]}),
    },
)
SCORES = st.none() | st.builds(Judgement, st.just(""), st.just("r"), st.none() | st.floats(1, 5), st.just("reply"))


@given(st.lists(st.tuples(ANSWERS, SCORES), min_size=4, max_size=12), TABLES, st.booleans(), st.integers(0, 12))
def test_keep_table_says_what_keep_says_of_each_row(rows, table, is_judged, cut) -> None:
    rules = compile_rules(
        QualityConfig.model_validate(table), JudgeConfig(rubric="r", threshold=3) if is_judged else None
    )
    answers = [dataclasses.replace(answer, id=f"a{index}") for index, (answer, _) in enumerate(rows)]
    judgements = {answer.id: score for answer, (_, score) in zip(answers, rows, strict=True) if score is not None}
    verdicts = [keep(answer, ORIGIN, rules, judgements.get(answer.id)) for answer in answers]
    whole = to_table(answers)
    examples, drops = keep_table(pa.concat_tables([whole.slice(0, cut), whole.slice(cut)]), ORIGIN, rules, judgements)
    assert examples.schema.equals(EXAMPLE_SCHEMA) and drops.schema.equals(DROP_SCHEMA)
    assert examples_from_table(examples) == [verdict for verdict in verdicts if isinstance(verdict, Example)]
    assert [Drop(**row) for row in drops.to_pylist()] == [verdict for verdict in verdicts if isinstance(verdict, Drop)]


def test_keep_table_hands_on_soft_labels() -> None:
    answers = [
        make_answer(id="a", top_ids=LABELS[0], top_logprobs=LABELS[1]),
        make_answer(id="b", finish_reason="length", top_ids=LABELS[0][::-1], top_logprobs=LABELS[1]),
        make_answer(id="c", tokens=[7], top_ids=LABELS[0][:1], top_logprobs=LABELS[1][:1]),
        make_answer(id="d", error="x", text="", tokens=[]),
    ]
    examples, drops = keep_table(to_table(answers, 2), ORIGIN)
    assert examples.schema.equals(example_schema(2))
    assert drops["id"].to_pylist() == ["b", "d"]
    kept = examples_from_table(examples)
    assert [example.id for example in kept] == ["a", "c"]
    for example, answer in zip(kept, (answers[0], answers[2]), strict=True):
        alone = keep(answer, ORIGIN)
        assert example == alone
        for got in (example, alone):
            assert np.array_equal(got.top_ids, answer.top_ids) and got.top_ids.dtype == np.int32
            assert np.array_equal(got.top_logprobs, answer.top_logprobs) and got.top_logprobs.dtype == np.float16


def test_keep_table_drops_near_copies_last() -> None:
    answers = [make_answer(id="a"), make_answer(id="b"), make_answer(id="c", text="")]
    examples, drops = keep_table(to_table(answers), ORIGIN, copies={"b": "a near copy of a", "c": "a near copy of a"})
    assert examples["id"].to_pylist() == ["a"]
    assert [(row["id"], row["reason"], row["detail"]) for row in drops.to_pylist()] == [
        ("b", "duplicate", "a near copy of a"),
        ("c", "empty", ""),
    ]


def test_keep_table_of_nothing() -> None:
    examples, drops = keep_table(answer_schema(3).empty_table(), ORIGIN, Rules(must_match=("a",), threshold=3))
    assert (examples.num_rows, drops.num_rows) == (0, 0)
    assert examples.schema.equals(example_schema(3)) and drops.schema.equals(DROP_SCHEMA)


def test_rows_of_a_ledger_without_soft_labels_need_no_array() -> None:
    answer = make_answer(top_ids=LABELS[0], top_logprobs=LABELS[1])
    (row,) = read_rows(to_table([answer]))
    assert "top_ids" not in row


def test_the_first_good_answer_is_picked_else_the_last_failure(tmp_path: Path) -> None:
    rows = [("a", None), ("a", None), ("b", "x"), ("b", None), ("b", "y"), ("c", "x"), ("c", "y")]
    answers = [
        dataclasses.replace(make_ledger_answer(name), error=error, text=str(index))
        for index, (name, error) in enumerate(rows)
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
