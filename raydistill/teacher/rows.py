"""Which (query, sample) rows are asked, in which order, and the request objects that Ray Data reads them from."""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.core import storage
from raydistill.core.answers import REQUEST_SCHEMA, answer_id
from raydistill.core.errors import ConfigError
from raydistill.core.prompts import Prompt, teacher_messages
from raydistill.core.records import Query, digest
from raydistill.core.uris import join
from raydistill.renderers import Renderer

ROWS_PER_OBJECT = 10_000  # of rendered prompts held in memory at a time


@dataclass(frozen=True)
class AskRow:
    """One (query, sample) to ask, and the id of its answer."""

    id: str
    query: Query
    sample_index: int


def check_count(queries: list[Query], num_examples: int, num_samples: int) -> None:
    """Refuse with a ConfigError where there are fewer (query, sample) pairs than num_examples."""
    if len(queries) * num_samples < num_examples:
        raise ConfigError(
            f"num_examples: {num_examples} were asked for, but {len(queries)} queries x num_samples={num_samples} give "
            f"{len(queries) * num_samples}. Give more queries, a larger num_samples or a smaller num_examples."
        )


def choose_rows(queries: list[Query], num_examples: int, num_samples: int, seed: int, fingerprint: str) -> list[AskRow]:
    """Return the first num_examples rows in the order that a seed gives, so that a larger number only adds.

    All queries are asked once before any is asked twice.
    """
    check_count(queries, num_examples, num_samples)
    ordered = sorted(queries, key=lambda query: digest([seed, query.id]))
    pairs = [(query, sample_index) for sample_index in range(num_samples) for query in ordered]
    return [
        AskRow(answer_id(query.messages, fingerprint, sample_index), query, sample_index)
        for query, sample_index in pairs[:num_examples]
    ]


def render_row(row: AskRow, prompt: Prompt, renderer: Renderer) -> list[int]:
    """Return the token ids that the teacher sees: P, the query and the opening of the assistant's turn.

    Raises:
        ConfigError: the chat template refuses these messages.
    """
    return renderer.build_generation_prompt(teacher_messages(prompt, row.query.messages)).to_ints()


def write_requests(rows: Iterable[tuple[AskRow, int]], prompt: Prompt, renderer: Renderer, folder: str) -> list[str]:
    """Render rows and write them as Parquet objects into a folder; returns the objects' names.

    Args:
        rows: with the number of this attempt, which makes the id that Ray Data's checkpoint goes by.
        prompt: P.
        renderer: the teacher's.
        folder: where, a URI.
    """
    names: list[str] = []
    batch: list[dict] = []
    for row, attempt in rows:
        batch.append(
            {
                "ask_id": f"{row.id}-{attempt}",
                "id": row.id,
                "query_id": row.query.id,
                "sample_index": row.sample_index,
                "messages": json.dumps(row.query.messages, ensure_ascii=False),
                "tokens": render_row(row, prompt, renderer),
            }
        )
        if len(batch) == ROWS_PER_OBJECT:
            names.append(_write_object(batch, folder))
            batch = []
    if batch:
        names.append(_write_object(batch, folder))
    return names


def _write_object(batch: list[dict], folder: str) -> str:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(batch, schema=REQUEST_SCHEMA), buffer, compression="zstd")
    data = buffer.getvalue()
    name = f"{hashlib.sha256(data).hexdigest()[:32]}.parquet"
    storage.write_bytes(join(folder, name), data)
    return name
