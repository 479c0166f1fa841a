"""A ledger of answers without Ray: a manifest's draft, answers, and their objects as Ray Data leaves them."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.core.answers import ANSWER_SCHEMA, answer_to_row
from raydistill.core.records import Answer, Manifest, Usage, digest

DRAFT = Manifest(
    fingerprint="f" * 32,
    finished=False,
    prompt_digest="p" * 32,
    teacher={"model": "m", "revision": "r", "tokenizer_digest": "t"},
    sampling={"temperature": 0.3},
    counts={"asked": 0, "answered": 0, "kept": 0, "dropped": {}},
    tokens={"prompt": 0, "cached": 0, "completion": 0},
)


def make_answer(name: str, **changes: object) -> Answer:
    """Return a good answer to a question of its own, or one with these changes."""
    messages = [{"role": "user", "content": f"question {name}"}]
    answer = Answer(name, digest(messages), 0, messages, f"answer {name}", [4, 5, 2], "stop", Usage(10, 6, 3), 0.5)
    return dataclasses.replace(answer, **changes)


def commit(folder: Path, name: str, answers: list[Answer], pending: bool = False) -> None:
    """Write an object of the ledger and its checkpoint, as `raydistill.dataset.append` does."""
    rows = [answer_to_row(answer, f"{answer.id}-0") for answer in answers]
    for place in ("answers", "checkpoint"):
        (folder / place).mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA), folder / "answers" / f"{name}-0.parquet")
    ids = pa.table({"ask_id": [row["ask_id"] for row in rows]})
    pq.write_table(ids, folder / "checkpoint" / f"{name}{'.pending' if pending else ''}.parquet")
