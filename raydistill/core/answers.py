"""How a row looks on its way to the teacher and in the answers ledger (Parquet), and the ids that rows carry."""

import dataclasses
import json
from typing import Any

import pyarrow as pa

from raydistill.core.records import Answer, Message, Usage, digest

TOO_LONG = "too_long"  # finish_reason of a row whose prompt does not fit the teacher's context: it was not asked

REQUEST_SCHEMA = pa.schema(
    [
        ("ask_id", pa.string()),  # the answer's id and the attempt: what the checkpoint counts as done
        ("id", pa.string()),
        ("query_id", pa.string()),
        ("sample_index", pa.int32()),
        ("messages", pa.string()),  # JSON
        ("tokens", pa.list_(pa.int32())),
    ]
)
ANSWER_SCHEMA = pa.schema(
    [
        ("ask_id", pa.string()),
        ("id", pa.string()),
        ("query_id", pa.string()),
        ("sample_index", pa.int32()),
        ("messages", pa.string()),  # JSON
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("latency_seconds", pa.float64()),
        ("error", pa.string()),
        ("top_ids", pa.list_(pa.list_(pa.int32()))),
        ("top_logprobs", pa.list_(pa.list_(pa.float32()))),
    ]
)


def answer_id(query: list[Message], fingerprint: str, sample_index: int) -> str:
    """Return the id of one answer: a digest of everything that determines it.

    Args:
        query: the query's messages.
        fingerprint: of P, the teacher and its revision, the tokenizer, the template and the sampling.
        sample_index: which of a query's samples.
    """
    return digest({"query": query, "fingerprint": fingerprint, "sample_index": sample_index})


def row_seed(identifier: str) -> int:
    """Return the sampling seed of a row (31 bits), given by its id alone."""
    return int(digest(["seed", identifier])[:8], 16) & 0x7FFFFFFF


def answer_to_row(answer: Answer, ask_id: str) -> dict[str, Any]:
    """Return an Answer as a row of ANSWER_SCHEMA."""
    row = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer) if field.name != "usage"}
    row |= dataclasses.asdict(answer.usage)
    return row | {"ask_id": ask_id, "messages": json.dumps(answer.messages, ensure_ascii=False)}


def answer_from_row(row: dict[str, Any]) -> Answer:
    """Return the Answer of a row of ANSWER_SCHEMA."""
    row = {name: value for name, value in row.items() if name != "ask_id"}
    usage = Usage(*(row.pop(field.name) for field in dataclasses.fields(Usage)))
    return Answer(**{**row, "messages": json.loads(row["messages"])}, usage=usage)
