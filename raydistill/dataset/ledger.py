"""The answers ledger: append-only Parquet of every Answer, written by Ray Data with a checkpoint of its own.

Ray Data writes an object's ids to `checkpoint/NAME.pending.parquet`, then the object, then renames the ids to
`checkpoint/NAME.parquet`. So an object of `answers/` counts once its checkpoint is there: a truncated one
(a writer that died, or raised, in the middle) never does, and its rows are asked again.
"""

import hashlib
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.core import storage
from raydistill.core.answers import ANSWER_SCHEMA
from raydistill.core.records import Shard
from raydistill.core.uris import join

ANSWERS = "answers"
CHECKPOINT = "checkpoint"
ID_COLUMN = "ask_id"
PENDING = ".pending.parquet"
READ_THREADS = 8


def committed_names(folder: str) -> list[str]:
    """Return the names (without suffix) of the commits of a dataset's ledger."""
    names = storage.list_names(join(folder, CHECKPOINT))
    return [name.removesuffix(".parquet") for name in names if name.endswith(".parquet") and not name.endswith(PENDING)]


def committed_files(folder: str) -> list[str]:
    """Return the names of the objects in `answers/` that are whole: each one's commit is there."""
    commits = set(committed_names(folder))
    return [name for name in storage.list_names(join(folder, ANSWERS)) if name.rpartition("-")[0] in commits]


def count_answers(folder: str) -> tuple[set[str], Counter[str]]:
    """Return the answer ids that did not fail, and how often each of the others failed; of committed rows only."""
    files, path = storage.filesystem(join(folder, ANSWERS))
    good: set[str] = set()
    failures: Counter[str] = Counter()

    def read_marks(name: str) -> pa.Table:
        return pq.read_table(f"{path}/{name}", filesystem=files, columns=["id", "error"])

    with ThreadPoolExecutor(READ_THREADS) as threads:
        for marks in threads.map(read_marks, committed_files(folder)):
            for identifier, error in zip(marks["id"].to_pylist(), marks["error"].to_pylist(), strict=True):
                if error is None:
                    good.add(identifier)
                else:
                    failures[identifier] += 1
    return good, failures


def read_ledger(folder: str) -> tuple[pa.Table, list[Shard]]:
    """Return all committed rows, in the order of the objects' names, and what the objects are."""

    def read_object(name: str) -> tuple[pa.Table, Shard]:
        data = storage.read_bytes(join(folder, ANSWERS, name))
        table = pq.read_table(io.BytesIO(data)).cast(ANSWER_SCHEMA)
        return table, Shard(f"{ANSWERS}/{name}", table.num_rows, hashlib.sha256(data).hexdigest())

    with ThreadPoolExecutor(READ_THREADS) as threads:
        found = list(threads.map(read_object, committed_files(folder)))
    return pa.concat_tables([ANSWER_SCHEMA.empty_table(), *(table for table, _ in found)]), [
        shard for _, shard in found
    ]


def count_rows(folder: str, commit: str) -> int:
    """Return how many answers a commit holds."""
    files, path = storage.filesystem(join(folder, CHECKPOINT))
    return pq.read_metadata(f"{path}/{commit}.parquet", filesystem=files).num_rows


def best_rows(ledger: pa.Table) -> dict[str, int]:
    """Return the row to use for each answer id: the first that did not fail, else the last.

    Args:
        ledger: with the columns id and error.
    """
    best: dict[str, int] = {}
    errors = ledger["error"].to_pylist()
    for row, identifier in enumerate(ledger["id"].to_pylist()):
        known = best.get(identifier)
        if known is None or errors[known] is not None:
            best[identifier] = row
    return best
