"""Which (query, sample) rows are asked, and the request objects that asking actors read them from.

Nothing here holds all queries: what is known of each is its packed id, and the queries themselves stream by.
"""

import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.core import storage
from raydistill.core.answers import REQUEST_SCHEMA, answer_id
from raydistill.core.errors import ConfigError
from raydistill.core.idset import ID_TYPE, contains, find_positions, pack_ids, unpack_ids
from raydistill.core.patience import delete_patiently, list_patiently, patiently
from raydistill.core.prompts import QUERY_SLOT, Prompt, teacher_messages
from raydistill.core.records import Message, Query
from raydistill.core.uris import join
from raydistill.renderers import Renderer

REQUESTS = "requests"  # in a dataset's folder: the request objects
LARGEST_OBJECT = 10_000  # rows
LARGEST_CHARS = 32 * 2**20  # of the messages that are held at a time: histories may have 100 KB each
OBJECTS_PER_ACTOR = 16  # at least, where there are rows enough: so actors end at about the same time
BATCH_ROWS = 4096

Item = TypeVar("Item")


@dataclass(frozen=True)
class Choice:
    """How often each query is asked.

    Attributes:
        ids: sorted packed ids of the queries.
        num_samples: of each, int32.
        fingerprint: of P, teacher and sampling, which makes the rows' ids.
    """

    ids: np.ndarray
    num_samples: np.ndarray
    fingerprint: str

    @property
    def num_rows(self) -> int:
        """The number of (query, sample) pairs."""
        return int(self.num_samples.sum())

    def row_ids(self) -> np.ndarray:
        """Return the packed ids of all (query, sample) pairs."""
        row_ids, end = np.empty(self.num_rows, dtype=ID_TYPE), 0
        for start in range(0, len(self.ids), BATCH_ROWS):  # ids as texts take ten times the memory
            part = slice(start, start + BATCH_ROWS)
            pairs = zip(unpack_ids(self.ids[part]), self.num_samples[part].tolist(), strict=True)
            packed = pack_ids(
                answer_id(query, self.fingerprint, sample_index)
                for query, num_samples in pairs
                for sample_index in range(num_samples)
            )
            row_ids[end : end + len(packed)] = packed
            end += len(packed)
        return row_ids


def check_count(num_queries: int, num_examples: int, num_samples: int) -> None:
    """Refuse with a ConfigError where there are fewer (query, sample) pairs than num_examples."""
    if num_queries * num_samples < num_examples:
        raise ConfigError(
            f"num_examples: {num_examples} were asked for, but {num_queries} queries x num_samples={num_samples} give "
            f"{num_queries * num_samples}. Give more queries, a larger num_samples or a smaller num_examples."
        )


def choose_rows(query_ids: np.ndarray, num_examples: int, num_samples: int, seed: int, fingerprint: str) -> Choice:
    """Return which (query, sample)s are asked: the first num_examples in an order that a seed gives.

    So a larger number only adds. All queries are asked once before any is asked twice.

    Args:
        query_ids: sorted packed ids, each once.
        num_examples: (query, sample) pairs.
        num_samples: how often a query may be asked.
        seed: of the order.
        fingerprint: see Choice.
    """
    check_count(len(query_ids), num_examples, num_samples)
    rounds, rest = divmod(num_examples, max(1, len(query_ids)))
    samples = np.full(len(query_ids), rounds, dtype=np.int32)
    if rest:
        samples[np.argpartition(_order_keys(query_ids, seed), rest - 1)[:rest]] += 1
    return Choice(query_ids, samples, fingerprint)


def _order_keys(ids: np.ndarray, seed: int) -> np.ndarray:
    """Return a pseudo-random uint64 of each packed id and a seed: ids are uniform already, so mixing one half does.

    Source: the finalizer of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
    """
    half = ids.view(np.uint64).reshape(-1, 2)[:, 0]
    mixed = half ^ np.uint64(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def render_messages(messages: list[Message], prompt: Prompt, renderer: Renderer) -> list[int]:
    """Return the token ids that the teacher sees: P, the query and the opening of the assistant's turn.

    Raises:
        ConfigError: the chat template refuses these messages, or the renderer would leave P or the history out.
    """
    shown = teacher_messages(prompt, messages)
    if renderer.name == "raw" and len(shown) > 1:
        raise ConfigError(
            "create_data.renderer: raw shows the teacher one message, a user's, and with P and the history it would be "
            f"{len(shown)}. Choose renderer=chat, or write P as a user template with {QUERY_SLOT} and give queries of "
            "one message."
        )
    return renderer.build_generation_prompt(shown).to_ints()


def split_turns(messages: list[Message], all_turns: bool) -> list[list[Message]]:
    """Return what of a query is said before each answer; together, with the answers between, they are the conversation.

    Args:
        messages: the query's.
        all_turns: whether every user turn is answered, or the last one only, on the history as it is.
    """
    if not all_turns:
        return [messages]
    turns: list[list[Message]] = [[]]
    for message in messages:
        if message["role"] == "assistant":  # the teacher answers every user turn itself
            continue
        turns[-1].append(message)
        if message["role"] == "user":
            turns.append([])
    return turns[:-1]  # a query ends with a user's message


def find_rows(queries: Iterable[Query], choice: Choice, done: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield rows of REQUEST_SCHEMA for the chosen (query, sample)s that are not done.

    Args:
        queries: a stream, in which a query may come more than once.
        choice: what is to be asked.
        done: sorted packed ids of (query, sample)s.
    """
    seen = np.zeros(len(choice.ids), dtype=bool)
    for batch in _batches(queries, BATCH_ROWS, _count_chars):
        positions = find_positions(choice.ids, pack_ids(query.id for query in batch))
        rows = []
        for query, position in zip(batch, positions.tolist(), strict=True):
            if position < 0 or seen[position]:
                continue
            seen[position] = True
            messages = json.dumps(query.messages, ensure_ascii=False)
            for sample_index in range(choice.num_samples[position]):
                identifier = answer_id(query.id, choice.fingerprint, sample_index)
                values = (identifier, query.id, sample_index, messages)
                rows.append(dict(zip(REQUEST_SCHEMA.names, values, strict=True)))
        is_done = contains(done, pack_ids(row["id"] for row in rows))
        yield from (row for row, known in zip(rows, is_done.tolist(), strict=True) if not known)


def object_rows(num_rows: int, num_actors: int, smallest: int) -> int:
    """Return how many rows a request object gets: enough to keep an actor busy, few enough to share them evenly."""
    wanted = -(-num_rows // (num_actors * OBJECTS_PER_ACTOR))
    rows = max(smallest, min(wanted, LARGEST_OBJECT))
    return -(-num_rows // -(-num_rows // rows))  # evenly over as many objects


def write_requests(rows: Iterable[dict[str, Any]], rows_per_object: int, folder: str) -> list[str]:
    """Write rows of REQUEST_SCHEMA as Parquet objects into a folder; returns the objects' names, without suffix.

    Where rows are large there are more objects, of LARGEST_CHARS. A name is never used again: where failed rows are
    asked once more, the same rows are another object, so that the answers of before are not taken for its own.
    """
    return [_write_object(batch, folder) for batch in _batches(rows, rows_per_object, lambda row: len(row["messages"]))]


def read_requests(folder: str, name: str) -> list[dict[str, Any]]:
    """Return the rows of a request object."""
    data = patiently(lambda: storage.read_bytes(join(folder, f"{name}.parquet")))
    return pq.read_table(io.BytesIO(data)).to_pylist()


def clear_requests(folder: str) -> None:
    """Delete the request objects of a folder, those of a run that was killed too; nobody may be asking."""
    delete_patiently(join(folder, name) for name in list_patiently(folder))


def _write_object(batch: list[dict[str, Any]], folder: str) -> str:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(batch, schema=REQUEST_SCHEMA), buffer, compression="zstd")
    name = uuid.uuid4().hex
    patiently(lambda: storage.write_bytes(join(folder, f"{name}.parquet"), buffer.getvalue()))
    return name


def _count_chars(query: Query) -> int:
    return sum(len(message["content"]) for message in query.messages)


def _batches(items: Iterable[Item], size: int, count_chars: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield items together, size of them or LARGEST_CHARS at most."""
    batch: list[Item] = []
    num_chars = 0
    for item in items:
        batch.append(item)
        num_chars += count_chars(item)
        if len(batch) == size or num_chars >= LARGEST_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
