"""Finds queries whose text resembles another one's, by MinHash and locality-sensitive hashing.

Which of them is kept depends on the set of queries alone and not on the order of the rows: they are taken by their
ids, the smallest first, and one is kept unless it resembles one that is kept already. So every query that is dropped
resembles a kept one (not merely another dropped one), and a second pass over the kept ones drops nothing.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.core.errors import ConfigError, StorageError
from raydistill.core.idset import ID_TYPE, unpack_ids
from raydistill.core.records import Drop, Query
from raydistill.queries.sketch import NUM_PERMUTATIONS, make_lsh, sketch_query

if TYPE_CHECKING:
    import numpy as np
    from datasketch import MinHash

MIN_THRESHOLD, MAX_THRESHOLD = 0.5, 0.99  # below, unrelated texts share bands; above, there is one band only
REASON = "near_duplicate"
BATCH_ROWS = 4096
SPARE_BYTES = 64 << 20  # left free on the disk for others
# A bucket is a set of queries that share a band. Where thousands of queries share most of their text but are still too
# different to be dropped, each is compared with this many kept ones of a bucket, the first: time stays linear.
MAX_RIVALS = 8


@dataclass(frozen=True)
class NearDuplicate:
    """A query that resembles one that is kept.

    Attributes:
        id: of the query that is not to be asked.
        kept_id: of the most similar query that is kept.
        similarity: the estimated Jaccard similarity of their shingles, 0 to 1.
    """

    id: str
    kept_id: str
    similarity: float


def find_near_duplicates(queries: Iterable[Query], threshold: float) -> Iterator[NearDuplicate]:
    """Yield the queries that resemble another one, by id; see this file's first lines for which one is kept.

    Nothing but ids is in memory (some 50 bytes a query); sketches, 256 bytes a query and 12 for each band, stand in a
    temporary folder (TMPDIR) until the end. Of queries with the same id one counts.

    Args:
        queries: in any order.
        threshold: the similarity from which a query is dropped, 0.5 to 0.99.

    Raises:
        ConfigError: the threshold is out of range, or what `iter_queries` found.
        StorageError: the temporary folder is full.
    """
    if not MIN_THRESHOLD <= threshold <= MAX_THRESHOLD:
        raise ConfigError(f"near duplicates: the threshold {threshold} is not from {MIN_THRESHOLD} to {MAX_THRESHOLD}.")
    with tempfile.TemporaryDirectory(prefix="raydistill-near-") as folder:
        sketches = _write_sketches(queries, threshold, Path(folder))
        if len(sketches.ids_R):
            yield from _thin_out(sketches, _sort_into_buckets(sketches, Path(folder)), threshold, Path(folder))


def to_drop(duplicate: NearDuplicate, sample_index: int = 0) -> Drop:
    """Return the Drop that accounts for a near duplicate."""
    detail = f"resembles query {duplicate.kept_id} ({duplicate.similarity:.2f}), which is kept"
    return Drop(None, duplicate.id, sample_index, REASON, detail)


class NearIndex:
    """Queries that are kept, as more of them arrive; holds some 5 KB of memory a query, so it is for expansion.

    `find_near_duplicates` is the same for a source of any size, where all queries are there at once.
    """

    def __init__(self, threshold: float) -> None:
        """Begin without queries; see `find_near_duplicates` for the threshold."""
        self._threshold = threshold
        self._lsh = make_lsh(threshold)
        self._sketches: dict[str, MinHash] = {}

    def add(self, query: Query) -> None:
        """Add a query, whether or not it resembles another one."""
        self._insert(query.id, sketch_query(query))

    def find_or_add(self, query: Query) -> NearDuplicate | None:
        """Return which query of the index this one resembles most; where it resembles none, add it."""
        sketch = sketch_query(query)
        rivals = [(self._sketches[str(key)].jaccard(sketch), str(key)) for key in self._lsh.query(sketch)]
        if rivals:
            similarity, kept_id = min(rivals, key=lambda rival: (-rival[0], rival[1]))
            if similarity >= self._threshold:
                return NearDuplicate(query.id, kept_id, similarity)
        self._insert(query.id, sketch)
        return None

    def _insert(self, identifier: str, sketch: "MinHash") -> None:
        if identifier not in self._sketches:
            self._lsh.insert(identifier, sketch)
            self._sketches[identifier] = sketch


@dataclass(frozen=True)
class _Sketches:
    """What is known of the queries, row by row in the order in which they came."""

    ids_R: "np.ndarray"  # packed, see core.idset
    hashes_RP: "np.ndarray"  # uint16: of each MinHash value the lower half; two differ wrongly in 1 of 65,536 cases
    band_files: list[Path]  # in each a uint64 a row, equal where the rows share the band


def _write_sketches(queries: Iterable[Query], threshold: float, folder: Path) -> _Sketches:
    import numpy as np

    bands = make_lsh(threshold).hashranges
    band_files = [folder / f"band-{index}" for index in range(len(bands))]
    ids = bytearray()
    with (folder / "hashes").open("wb") as file:
        for values_BP in _sketch_batches(queries, ids):
            _check_room(folder, len(values_BP) * (2 * NUM_PERMUTATIONS + 8 * len(bands)))
            file.write(values_BP.astype(np.uint16).tobytes())
            for path, (start, end) in zip(band_files, bands, strict=True):
                with path.open("ab") as band_file:
                    band_file.write(_digest_rows(values_BP[:, start:end]).tobytes())
    ids_R = np.frombuffer(ids, dtype=ID_TYPE)
    if not len(ids_R):
        return _Sketches(ids_R, ids_R, [])
    hashes_RP = np.memmap(folder / "hashes", dtype=np.uint16, mode="r", shape=(len(ids_R), NUM_PERMUTATIONS))
    return _Sketches(ids_R, hashes_RP, band_files)


def _check_room(folder: Path, size_bytes: int) -> None:
    """Refuse to fill a disk: a mapped file that finds no room there ends the whole process with SIGBUS."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes + SPARE_BYTES:
        raise StorageError(
            f"near duplicates: {size_bytes >> 20} MiB more are needed in {folder.parent}, and {free_bytes >> 20} MiB "
            "are free. Set TMPDIR to a folder with more room."
        )


def _sketch_batches(queries: Iterable[Query], ids: bytearray) -> "Iterator[np.ndarray]":
    """Yield the MinHash values of batches of queries, [rows, permutations] uint32, and append their ids."""
    import numpy as np

    batch = []
    for query in queries:
        ids += bytes.fromhex(query.id)
        batch.append(sketch_query(query).hashvalues)
        if len(batch) == BATCH_ROWS:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _digest_rows(values: "np.ndarray") -> "np.ndarray":
    """Return one uint64 for each row of uint32 values."""
    import numpy as np

    digests = np.zeros(len(values), dtype=np.uint64)
    for column in values.T:
        digests = (digests ^ column) * np.uint64(0x9E3779B97F4A7C15)
        digests ^= digests >> np.uint64(29)
    return digests


@dataclass(frozen=True)
class _Buckets:
    """Which queries share a band with another one. A rank is a query's place in the order of the ids."""

    row_of_rank_N: "np.ndarray"  # each id once
    shared_S: "np.ndarray"  # the ranks that share a band, ascending
    bucket_NB: "np.ndarray"  # [ranks, bands] uint32: the number of the query's bucket from 1; 0: it is alone in it
    num_buckets: int


def _sort_into_buckets(sketches: _Sketches, folder: Path) -> _Buckets:
    import numpy as np

    _, row_of_rank_N = np.unique(sketches.ids_R, return_index=True)
    shape = (len(row_of_rank_N), len(sketches.band_files))
    _check_room(folder, 4 * shape[0] * shape[1])
    bucket_NB = np.memmap(folder / "buckets", dtype=np.uint32, mode="w+", shape=shape)
    num_buckets = 0
    for band, path in enumerate(sketches.band_files):
        keys_N = np.fromfile(path, dtype=np.uint64)[row_of_rank_N]
        by_key_N = np.argsort(keys_N)
        is_first_N = np.append(True, np.diff(keys_N[by_key_N]) != 0)
        sizes = np.diff(np.append(np.flatnonzero(is_first_N), len(keys_N)))
        is_shared_N = np.repeat(sizes > 1, sizes)
        bucket_NB[by_key_N[is_shared_N], band] = num_buckets + np.cumsum(is_first_N[is_shared_N])
        num_buckets += int((sizes > 1).sum())
    return _Buckets(row_of_rank_N, np.flatnonzero(bucket_NB.any(axis=1)), bucket_NB, num_buckets)


def _thin_out(sketches: _Sketches, buckets: _Buckets, threshold: float, folder: Path) -> Iterator[NearDuplicate]:
    """Go through the queries that share a band, by id, and yield those that resemble one that was kept."""
    import numpy as np

    def id_at(rank: int) -> str:
        return unpack_ids(sketches.ids_R[buckets.row_of_rank_N[[rank]]])[0]

    _check_room(folder, 4 * (buckets.num_buckets + 1) * MAX_RIVALS)
    kept_KM = np.memmap(folder / "kept", dtype=np.uint32, mode="w+", shape=(buckets.num_buckets + 1, MAX_RIVALS))
    num_kept_K = np.zeros(buckets.num_buckets + 1, dtype=np.uint8)
    for rank in buckets.shared_S:
        own = buckets.bucket_NB[rank]
        own = own[own > 0]
        rivals = np.unique(kept_KM[own])  # ranks counted from 1; 0 is an empty place
        rivals = rivals[rivals > 0] - 1
        if len(rivals):
            rows = buckets.row_of_rank_N[rivals]
            hashes_P = sketches.hashes_RP[buckets.row_of_rank_N[rank]]
            similarity = (sketches.hashes_RP[rows] == hashes_P).mean(axis=1)
            best = int(similarity.argmax())  # of equal ones the first, which has the smallest id
            if similarity[best] >= threshold:
                yield NearDuplicate(id_at(rank), id_at(rivals[best]), float(similarity[best]))
                continue
        own = own[num_kept_K[own] < MAX_RIVALS]
        kept_KM[own, num_kept_K[own]] = rank + 1
        num_kept_K[own] += 1
