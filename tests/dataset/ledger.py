"""A ledger of answers without Ray: a manifest's draft, answers, and their objects as asking actors leave them."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydistill.core.answers import ANSWER_SCHEMA, answer_to_row
from raydistill.core.idset import pack_ids
from raydistill.core.records import Answer, Manifest, Shard, Usage, digest
from raydistill.dataset.layout import write_table
from raydistill.dataset.ledger import NEW

DRAFT = Manifest(
    fingerprint="f" * 32,
    finished=False,
    prompt_digest="p" * 32,
    teacher={"model": "m", "revision": "r", "tokenizer_digest": "t"},
    sampling={"temperature": 0.3},
    counts={"asked": 0, "answered": 0, "kept": 0, "dropped": {}},
    tokens={"prompt": 0, "cached": 0, "completion": 0},
)


def make_id(name: str) -> str:
    """Return the id of the answer with this name."""
    return digest(name)


def pack(*names: str) -> np.ndarray:
    """Return the packed ids of the answers with these names."""
    return pack_ids(map(make_id, names))


def make_answer(name: str, **changes: object) -> Answer:
    """Return a good answer to a question of its own, or one with these changes."""
    messages = [{"role": "user", "content": f"question {name}"}]
    answer = Answer(
        make_id(name), digest(messages), 0, 0, messages, f"answer {name}", [4, 5, 2], "stop", Usage(10, 6, 3), 0.5
    )
    return dataclasses.replace(answer, **changes)


def commit(folder: Path, name: str, answers: list[Answer]) -> Shard:
    """Write an object of the ledger as an asking actor does; no manifest names it yet."""
    table = pa.Table.from_pylist([answer_to_row(answer) for answer in answers], schema=ANSWER_SCHEMA)
    return write_table(str(folder), f"{NEW}/{name}.parquet", table)
