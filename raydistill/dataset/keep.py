"""From an Answer to an Example or a Drop with its reason: a pure function, so new rules ask nothing again."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from raydistill.core.records import Answer, Drop, Example, Manifest
from raydistill.core.topk import TOP_IDS, TOP_LOGPROBS
from raydistill.dataset.judge import Judgement, find_low_score
from raydistill.dataset.layout import DROP_SCHEMA, EXAMPLE_SCHEMA
from raydistill.dataset.rules import Facts, Fault, Rules, find_fault, find_text_fault, read_facts

DETAIL_CHARS = 500
LEAST = Rules()
compute: Any = pyarrow.compute  # makes its functions as it is imported, so pyright knows none of them
_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))  # what str.strip takes away


@dataclass(frozen=True)
class Origin:
    """What is the same for every answer of a dataset."""

    teacher: str  # model and revision
    prompt_digest: str

    @classmethod
    def of(cls, draft: Manifest) -> "Origin":
        """Return what a dataset's manifest says of all its answers."""
        return cls(f"{draft.teacher['model']}@{draft.teacher['revision']}", draft.prompt_digest)


def keep(answer: Answer, origin: Origin, rules: Rules = LEAST, judgement: Judgement | None = None) -> Example | Drop:
    """Return the Example of a good answer, or the Drop that says which rule it breaks first; see `rules`.

    Raises:
        DatasetError: a regular expression takes too long.
    """
    judgements = {} if judgement is None else {answer.id: judgement}
    fault = find_fault(read_facts(answer), rules) or find_low_score(answer.id, judgements, rules)
    if fault is not None:
        return _drop(answer, fault)
    return Example(
        id=answer.id,
        query_id=answer.query_id,
        messages=answer.messages,
        response=answer.text,
        response_tokens=list(answer.tokens),
        teacher=origin.teacher,
        prompt_digest=origin.prompt_digest,
        top_ids=answer.top_ids,
        top_logprobs=answer.top_logprobs,
    )


def keep_table(
    answers: pa.Table,
    origin: Origin,
    rules: Rules = LEAST,
    judgements: Mapping[str, Judgement] | None = None,
    copies: Mapping[str, str] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Return (examples, drops) of a table of answers, in its order; each row is in one of the two.

    It says what `keep` says of each row, but looks at whole columns: only rows that break a rule, and texts that a rule
    has to read, become Python objects: 2 microseconds a row of 300 tokens where no rule reads texts, instead of 50.

    Args:
        answers: of `answer_schema`.
        origin: of all of them.
        rules: what they must be.
        judgements: by answer id; of no use where the rules have no threshold.
        copies: of `similar.NearCopies.find`, which knows all answers: id of a near copy -> what it is a copy of.

    Raises:
        DatasetError: a regular expression takes too long.
    """
    faults = _find_faults(answers, rules)
    if rules.threshold is not None or copies:
        ids = answers["id"].to_pylist()
        for row in _others(faults, len(ids)):
            fault = find_low_score(ids[row], judgements or {}, rules)
            if fault is None and copies and ids[row] in copies:
                fault = Fault("duplicate", copies[ids[row]])
            if fault is not None:
                faults[row] = fault
    return _to_examples(answers, _others(faults, answers.num_rows), origin), _to_drops(answers, faults)


def _find_faults(answers: pa.Table, rules: Rules) -> dict[int, Fault]:
    """Return the rules that answers break by themselves, by row."""
    is_good = _have_good_ends(answers, rules)
    faults: dict[int, Fault] = {}
    suspects = np.flatnonzero(~is_good)
    for row, facts in zip(suspects.tolist(), _take_facts(answers, suspects), strict=True):
        if fault := find_fault(facts, rules):
            faults[row] = fault
    if rules.read_text:
        good = np.flatnonzero(is_good)
        for row, text in zip(good.tolist(), answers["text"].take(pa.array(good)).to_pylist(), strict=True):
            if fault := find_text_fault(text, rules):
                faults[row] = fault
    return faults


def _have_good_ends(answers: pa.Table, rules: Rules) -> np.ndarray:
    """Return which rows break no rule about their end and their length, bool."""
    num_chars = compute.utf8_length(compute.utf8_trim(answers["text"], characters=_WHITE_SPACE))
    num_tokens = compute.list_value_length(answers["tokens"])
    is_good = compute.and_(compute.equal(answers["finish_reason"], "stop"), compute.is_null(answers["error"]))
    is_good = compute.and_(is_good, compute.greater_equal(num_chars, max(1, rules.min_chars)))
    is_good = compute.and_(is_good, compute.greater_equal(num_tokens, rules.min_tokens))
    if rules.max_tokens is not None:
        is_good = compute.and_(is_good, compute.less_equal(num_tokens, rules.max_tokens))
    return is_good.to_numpy()


def _take_facts(answers: pa.Table, rows: np.ndarray) -> Iterator[Facts]:
    """Yield what the rules look at in some rows."""
    taken = answers.select(["finish_reason", "error", "completion_tokens", "tokens", "text"]).take(pa.array(rows))
    taken = taken.set_column(3, "tokens", compute.list_value_length(taken["tokens"]))
    return itertools.starmap(Facts, zip(*(column.to_pylist() for column in taken.columns), strict=True))


def _others(faults: Mapping[int, Fault], num_rows: int) -> list[int]:
    """Return the rows that no fault was found in, in order."""
    is_kept = np.ones(num_rows, dtype=bool)
    is_kept[list(faults)] = False
    return np.flatnonzero(is_kept).tolist()


def _to_examples(answers: pa.Table, rows: list[int], origin: Origin) -> pa.Table:
    kept = answers if len(rows) == answers.num_rows else answers.take(pa.array(rows, pa.int64()))
    same = {"teacher": origin.teacher, "prompt_digest": origin.prompt_digest}
    source = {"response": "text", "response_tokens": "tokens"}
    schema = pa.schema([*EXAMPLE_SCHEMA, *(kept.schema.field(name) for name in _label_names(kept))])
    columns = [
        pa.repeat(same[name], kept.num_rows) if name in same else kept[source.get(name, name)] for name in schema.names
    ]
    return pa.table(columns, schema=schema)


def _label_names(answers: pa.Table) -> list[str]:
    return [name for name in (TOP_IDS, TOP_LOGPROBS) if name in answers.column_names]


def _to_drops(answers: pa.Table, faults: Mapping[int, Fault]) -> pa.Table:
    rows = sorted(faults)
    names = ["id", "query_id", "sample_index"]
    found = answers.select(names).take(pa.array(rows, pa.int64()))
    reasons = [faults[row].reason for row in rows]
    details = [_cut(faults[row].detail) for row in rows]
    columns = [*found.columns, pa.array(reasons, pa.string()), pa.array(details, pa.string())]
    return pa.table(columns, schema=DROP_SCHEMA)


def _drop(answer: Answer, fault: Fault) -> Drop:
    return Drop(answer.id, answer.query_id, answer.sample_index, fault.reason, _cut(fault.detail))


def _cut(detail: str) -> str:
    return detail if len(detail) <= DETAIL_CHARS else f"{detail[: DETAIL_CHARS - 1]}…"
