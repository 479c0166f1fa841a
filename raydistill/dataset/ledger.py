"""The answers ledger: append-only Parquet of every Answer.

An asking actor writes each commit as one object into `answers/new/`, in one step, and the driver names it in the
manifest; `compact` joins these small objects into large ones in `answers/`. An object in `answers/new/` that the
manifest does not name was written just before a kill: it counts, and is found by listing that folder, which never
holds more than what was written since the last compaction.

Ray Data's own checkpointing is not used: it leaves two objects and one task for each commit, and a resume lists
and reads them all (docs/data.md says what that costs).
"""

import contextlib
import dataclasses
import hashlib
import io
import uuid
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from raydistill.core import storage
from raydistill.core.answers import Commit, answers_to_table
from raydistill.core.errors import DatasetError, NotFoundError, UnavailableError
from raydistill.core.idset import ID_DIGITS, find_positions, pack_ids
from raydistill.core.patience import delete_patiently, list_patiently, patiently
from raydistill.core.records import Shard
from raydistill.core.uris import join
from raydistill.dataset.keep import LEAST, Origin, keep_table
from raydistill.dataset.layout import read_table, write_table
from raydistill.dataset.rules import Rules

ANSWERS = "answers"
NEW = f"{ANSWERS}/new"
COMPACT_ROWS = 20_000  # as many as examples in an object: the two are together one object for 10,000 rows
COMPACT_BYTES = 256 * 2**20
READ_THREADS = 8
pc: Any = pyarrow.compute


@dataclasses.dataclass(frozen=True)
class LedgerWriter:
    """What an asking actor writes with.

    Attributes:
        folder: the dataset's.
        origin: what is the same for every answer.
        rules: by which its commits say what of them is kept; what others answered, or a judge says, is not known yet.
        top_logprobs: how many soft labels each position has.
    """

    folder: str
    origin: Origin
    rules: Rules = LEAST
    top_logprobs: int | None = None

    def write(self, request: str, rows: list[dict]) -> Commit:
        """Make rows of `answer_to_row` part of the ledger, in one step, and say what they are.

        Args:
            request: names the request object that they answer, so that `read_answered` finds them.
            rows: at least one.
        """
        table = answers_to_table(rows, self.top_logprobs)
        # Never the name of another commit, not even where a worker that was given up still writes.
        name = f"{NEW}/{request}-{uuid.uuid4().hex[:16]}.parquet"
        shard = patiently(lambda: write_table(self.folder, name, table))
        return describe_commit(shard, table, self.origin, self.rules)

    def read_answered(self, request: str) -> set[str]:
        """Return the ids of the (query, sample)s of a request object that are in the ledger already.

        Only of one that is in work: objects of one that has ended may have been joined.
        """
        return patiently(lambda: self._read_answered(request))

    def _read_answered(self, request: str) -> set[str]:
        answered: set[str] = set()
        for name in storage.list_names(join(self.folder, NEW)):
            # Gone by now: an actor that was given up has ended the request object after all. The rows count once.
            with contextlib.suppress(NotFoundError):
                if request_of(name) == request:
                    ids = _read_columns(self.folder, f"{NEW}/{name}", ["id"])["id"].to_pylist()
                    answered |= {identifier[:ID_DIGITS] for identifier in ids}
        return answered


@dataclasses.dataclass(frozen=True)
class Marks:
    """What the ledger knows of each (query, sample): sorted packed ids, and whether every answer so far failed."""

    ids: np.ndarray
    failed: np.ndarray


def count_tokens(table: pa.Table) -> dict[str, int]:
    """Return the sums of prompt, cached and completion tokens of a table of answers."""
    return {key: pc.sum(table[f"{key}_tokens"]).as_py() or 0 for key in ("prompt", "cached", "completion")}


def find_starts(table: pa.Table) -> np.ndarray:
    """Return the row at which each (query, sample) begins, int64: the answers to its further turns come right after."""
    return np.flatnonzero(table["turn"].to_numpy() == 0)


def describe_commit(shard: Shard, table: pa.Table, origin: Origin, rules: Rules) -> Commit:
    """Return what there is to say of an object with these rows."""
    examples, drops = keep_table(table, origin, dataclasses.replace(rules, threshold=None))
    reasons = drops["reason"].to_pylist()
    dropped = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return Commit(shard, len(find_starts(table)), examples.num_rows, dropped, count_tokens(table))


def find_unnamed(folder: str, named: Sequence[Shard], origin: Origin, rules: Rules = LEAST) -> list[Commit]:
    """Return what was committed just before a kill, so that the manifest does not name it."""
    known = {shard.uri for shard in named}
    unnamed = [f"{NEW}/{name}" for name in list_patiently(join(folder, NEW)) if f"{NEW}/{name}" not in known]
    if not unnamed:
        return []
    marks = read_marks(folder, named)
    found = []
    for uri in unnamed:
        data = patiently(lambda uri=uri: storage.read_bytes(join(folder, uri)))
        table = pq.read_table(io.BytesIO(data))
        ids, failed = _find_runs(table)
        places = find_positions(marks.ids, ids)
        # What a kill left behind right after a compaction is in the ledger already, in the same words.
        is_known = (places >= 0) & (failed | ~marks.failed[places]) if len(marks.ids) else np.zeros(len(ids), bool)
        if not is_known.all():
            shard = Shard(uri, table.num_rows, len(data), hashlib.sha256(data).hexdigest())
            found.append(describe_commit(shard, table, origin, rules))
    return found


def read_runs(folder: str, shards: Iterable[Shard]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each object (packed ids, failed) of its (query, sample)s in order, from three columns of it.

    One counts as failed where the answer to any of its turns did.
    """

    def read(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
        return _find_runs(patiently(lambda: _read_columns(folder, shard.uri, ["id", "turn", "error"])))

    with ThreadPoolExecutor(READ_THREADS) as threads:
        return list(threads.map(read, shards))


def _find_runs(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    starts = find_starts(table)
    ids = pack_ids(table["id"].take(pa.array(starts)).to_pylist())
    return ids, np.logical_or.reduceat(table["error"].is_valid().to_numpy(), starts)


def read_marks(folder: str, shards: Iterable[Shard]) -> Marks:
    """Return which (query, sample)s are in the ledger, and of which every answer failed."""
    runs = read_runs(folder, shards)
    if not runs:
        return Marks(pack_ids([]), np.zeros(0, dtype=bool))
    ids = np.concatenate([ids for ids, _ in runs])
    failed = np.concatenate([failed for _, failed in runs])
    order = np.lexsort((failed, ids))  # of the runs of one id a good one comes first
    ids, failed = ids[order], failed[order]
    is_first = np.ones(len(ids), dtype=bool)
    is_first[1:] = ids[1:] != ids[:-1]
    return Marks(ids[is_first], failed[is_first])


def compact(folder: str, shards: Sequence[Shard]) -> Shard:
    """Write the rows of several objects as one and return it; the caller names it instead of them."""
    table = pa.concat_tables([patiently(lambda shard=shard: read_table(folder, shard)) for shard in shards])
    return patiently(lambda: write_table(folder, f"{ANSWERS}/ledger-{{}}.parquet", table))


def request_of(uri: str) -> str:
    """Return the name of the request object that an object in `answers/new/` answers."""
    return PurePosixPath(uri).name.partition("-")[0]


def choose_compaction(
    shards: Sequence[Shard], at_end: bool = False, in_work: AbstractSet[str] = frozenset()
) -> list[Shard]:
    """Return the small objects that are to be joined now, or none.

    Args:
        shards: the ledger's.
        at_end: nothing will be added, so join what there is.
        in_work: names of request objects whose answers stay where an actor that takes one over looks for them.
    """
    small = [shard for shard in shards if shard.uri.startswith(f"{NEW}/") and request_of(shard.uri) not in in_work]
    chosen: list[Shard] = []
    rows = size_bytes = 0
    for shard in small:
        chosen.append(shard)
        rows, size_bytes = rows + shard.rows, size_bytes + shard.size_bytes
        if rows >= COMPACT_ROWS or size_bytes >= COMPACT_BYTES:
            return chosen
    if not at_end or not small:
        return []
    # What is left goes into the last object, where that is a small one too.
    last = [shard for shard in shards if not shard.uri.startswith(f"{NEW}/")][-1:]
    is_small = all(
        shard.rows + rows <= COMPACT_ROWS and shard.size_bytes + size_bytes <= COMPACT_BYTES for shard in last
    )
    return [*last, *small] if is_small else small


def replace_shards(shards: Sequence[Shard], joined: Sequence[Shard], by: Shard) -> list[Shard]:
    """Return the ledger's objects with some of them replaced by the one that they were joined into."""
    gone = {shard.uri for shard in joined}
    return [*(shard for shard in shards if shard.uri not in gone and shard.uri != by.uri), by]


def delete_shards(folder: str, shards: Iterable[Shard]) -> None:
    """Delete objects that the manifest does not name any more."""
    delete_patiently(join(folder, shard.uri) for shard in shards)


def clean(folder: str, shards: Sequence[Shard]) -> None:
    """Delete the objects of `answers/` that the ledger does not need any more: nobody may be writing to it."""
    named = {shard.uri for shard in shards}
    for place in (ANSWERS, NEW):
        names = [name for name in list_patiently(join(folder, place)) if name.endswith(".parquet")]
        delete_patiently(join(folder, place, name) for name in names if f"{place}/{name}" not in named)


def _read_columns(folder: str, uri: str, columns: list[str]) -> pa.Table:
    files, path = storage.filesystem(join(folder, uri))
    try:
        return pq.read_table(path, filesystem=files, columns=columns)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{join(folder, uri)} does not exist, and the ledger of {folder} needs it. Put it back, or delete that "
            "folder to ask everything anew."
        ) from error
    except OSError as error:
        raise UnavailableError(f"{join(folder, uri)} cannot be read: {error}.") from error
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{join(folder, uri)} is no Parquet object of answers ({error}).") from error
