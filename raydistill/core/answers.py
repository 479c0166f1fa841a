"""How a row looks on its way to the teacher and in the answers ledger (Parquet), and the ids that rows carry."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raydistill.core.idset import ID_DIGITS
from raydistill.core.records import Answer, Shard, Usage, digest
from raydistill.core.topk import read_rows, to_column, top_fields

TOO_LONG = "too_long"  # finish_reason of a row whose prompt does not fit the teacher's context: it was not asked

REQUEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("query_id", pa.string()),
        ("sample_index", pa.int32()),
        ("messages", pa.string()),  # JSON
    ]
)
ANSWER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("query_id", pa.string()),
        ("sample_index", pa.int32()),
        ("turn", pa.int32()),
        ("messages", pa.string()),  # JSON
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("latency_seconds", pa.float64()),
        ("error", pa.string()),
    ]
)


def answer_schema(top_logprobs: int | None) -> pa.Schema:
    """Return ANSWER_SCHEMA, with the columns of soft labels where there are any; see `topk.top_fields`."""
    return pa.schema([*ANSWER_SCHEMA, *top_fields(top_logprobs)])


def answer_id(query_id: str, fingerprint: str, sample_index: int) -> str:
    """Return the id of a (query, sample), 32 hexadecimal digits: a digest of everything that determines its answer.

    Args:
        query_id: a digest of the query's messages.
        fingerprint: of P, the teacher and its revision, the tokenizer, the template and the sampling.
        sample_index: which of a query's samples.
    """
    return hashlib.sha256(f"{query_id} {fingerprint} {sample_index}".encode()).hexdigest()[:ID_DIGITS]


def turn_id(identifier: str, turn: int) -> str:
    """Return the id of one answer of a conversation; the first, or only, one has that of the (query, sample)."""
    return f"{identifier}-{turn}" if turn else identifier


def row_seed(identifier: str) -> int:
    """Return the sampling seed of a row (31 bits), given by its id alone."""
    return int(digest(["seed", identifier])[:8], 16) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class Commit:
    """One object of answers that has just become part of the ledger.

    Attributes:
        shard: the object.
        pairs: (query, sample)s that are answered.
        kept: answers that the rules keep.
        dropped: answers by the reason for which the rules drop them.
        tokens: prompt, cached and completion tokens.
    """

    shard: Shard
    pairs: int
    kept: int
    dropped: dict[str, int]
    tokens: dict[str, int]


def answer_to_row(answer: Answer) -> dict[str, Any]:
    """Return an Answer as a row for `answers_to_table`: of ANSWER_SCHEMA, and its soft labels as arrays."""
    row = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer) if field.name != "usage"}
    row |= dataclasses.asdict(answer.usage)
    return row | {"messages": json.dumps(answer.messages, ensure_ascii=False)}


def answer_from_row(row: dict[str, Any]) -> Answer:
    """Return the Answer of a row of ANSWER_SCHEMA, or of `answer_to_row`."""
    row = dict(row)
    usage = Usage(*(row.pop(field.name) for field in dataclasses.fields(Usage)))
    return Answer(**{**row, "messages": json.loads(row["messages"])}, usage=usage)


def answers_to_table(rows: Sequence[dict[str, Any]], top_logprobs: int | None) -> pa.Table:
    """Return rows of `answer_to_row` as a table of `answer_schema`; 0.01 ms a row for soft labels of 300 positions.

    Raises:
        ValueError: soft labels of another k, or not one position for each token.
    """
    table = pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA)
    for field in top_fields(top_logprobs):
        arrays = [row[field.name] for row in rows]
        for row, array in zip(rows, arrays, strict=True):
            if array is not None and len(array) != len(row["tokens"]):
                raise ValueError(f"{field.name} of {row['id']}: {len(array)} positions, {len(row['tokens'])} tokens")
        table = table.append_column(field, to_column(arrays, field))
    return table


def answers_from_table(table: pa.Table) -> list[Answer]:
    """Return the Answers of a table of `answer_schema`."""
    return [answer_from_row(row) for row in read_rows(table)]
