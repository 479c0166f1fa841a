"""One pass over all queries of a source: what is wrong, what stands there twice, and a few of them as examples."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raydistill.core.errors import ConfigError
from raydistill.core.records import Query
from raydistill.queries.ids import id_of, pack_ids, unpack

if TYPE_CHECKING:
    import numpy as np

SAMPLE_SIZE = 128
MAX_ROLE_SEQUENCES = 64


@dataclass(frozen=True)
class QueryIndex:
    """What one pass over queries found, in 17 bytes a row.

    Attributes:
        ids_R2: [rows, 2] the two halves of each row's id, uint64.
        is_repeated_R: [rows] whether an earlier row has the same id, bool.
        role_examples: the first query of each sequence of roles, of the first 64 sequences.
        sample: the queries with the smallest ids, in their order: the same ones whatever the order of the rows.
        shortest: the query with the fewest characters.
    """

    ids_R2: "np.ndarray"
    is_repeated_R: "np.ndarray"
    role_examples: dict[tuple[str, ...], Query]
    sample: list[Query]
    shortest: Query

    @property
    def num_rows(self) -> int:
        """How many rows were read."""
        return len(self.ids_R2)

    @property
    def num_merged(self) -> int:
        """How many rows said what an earlier row said already."""
        return int(self.is_repeated_R.sum())

    @property
    def num_queries(self) -> int:
        """How many different queries there are."""
        return self.num_rows - self.num_merged

    def id_at(self, row: int) -> str:
        """Return the id of the query in a row, counted from 0."""
        return id_of(self.ids_R2, row)

    def rows_with(self, ids: Iterable[str]) -> "np.ndarray":
        """Return for each row whether its query's id is among these ids, [rows] bool."""
        import numpy as np

        return np.isin(self.ids_R2.view("S16")[:, 0], pack_ids(ids).view("S16")[:, 0])


def scan_queries(queries: Iterable[Query], sample_size: int = SAMPLE_SIZE) -> QueryIndex:
    """Read queries to their end and return what they are; no row stays in memory but the examples.

    Args:
        queries: those of `iter_queries`, or some of them.
        sample_size: how many examples to keep in `QueryIndex.sample`.

    Raises:
        ConfigError: there are none, or what `iter_queries` found.
    """
    ids = bytearray()
    roles_seen: dict[tuple[str, ...], Query] = {}
    sample = _SmallestIds(sample_size)
    shortest: tuple[int, str, Query] | None = None
    for query in queries:
        ids += bytes.fromhex(query.id)
        roles = tuple([message["role"] for message in query.messages])
        if roles not in roles_seen and len(roles_seen) < MAX_ROLE_SEQUENCES:
            roles_seen[roles] = query
        sample.offer(query)
        length = sum([len(message["content"]) for message in query.messages])
        if shortest is None or (length, query.id) < shortest[:2]:
            shortest = (length, query.id, query)
    if shortest is None:
        raise ConfigError("queries: none are left to be asked. Give more queries.")
    ids_R2 = unpack(ids)
    return QueryIndex(ids_R2, _find_repeated(ids_R2), roles_seen, sample.sorted(), shortest[2])


def iter_unique(
    queries: Iterable[Query], index: QueryIndex, is_skipped_R: "np.ndarray | None" = None
) -> Iterator[Query]:
    """Yield the queries without the repeated ones, given the very same queries that were scanned.

    Args:
        queries: in the order in which they were scanned.
        index: what the scan found.
        is_skipped_R: [rows] which others are left out, as `QueryIndex.rows_with` finds them.

    Raises:
        ConfigError: they are not the ones that were scanned: the source was changed in the meantime.
    """
    is_left_out_R = index.is_repeated_R if is_skipped_R is None else index.is_repeated_R | is_skipped_R
    row = -1
    for row, query in enumerate(queries):
        if row >= index.num_rows or index.id_at(row) != query.id:
            raise ConfigError(f"queries: the source was changed while it was used (query {row + 1} is another one).")
        if not is_left_out_R[row]:
            yield query
    if row + 1 != index.num_rows:
        raise ConfigError(f"queries: the source was changed while it was used: {index.num_rows} rows, now {row + 1}.")


def _find_repeated(ids_R2: "np.ndarray") -> "np.ndarray":
    import numpy as np

    order = np.lexsort((ids_R2[:, 1], ids_R2[:, 0]))  # stable, so the first of equal rows comes first
    ordered = ids_R2[order]
    is_repeated_R = np.zeros(len(ids_R2), dtype=bool)
    is_repeated_R[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return is_repeated_R


class _SmallestIds:
    """The queries with the smallest ids of all that were offered, each once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[int, Query]] = []  # negated ids: the largest kept one is on top
        self._ids: set[str] = set()
        self._largest = ""  # of the kept ids, once there are enough: a comparison of texts turns nearly every row away

    def offer(self, query: Query) -> None:
        """Keep a query if it belongs to the smallest."""
        if (self._largest and query.id >= self._largest) or query.id in self._ids or not self._size:
            return
        heapq.heappush(self._heap, (-int(query.id, 16), query))
        self._ids.add(query.id)
        if len(self._heap) > self._size:
            self._ids.remove(heapq.heappop(self._heap)[1].id)
        if len(self._heap) == self._size:
            self._largest = self._heap[0][1].id

    def sorted(self) -> list[Query]:
        """Return them by id."""
        return [query for _, query in sorted(self._heap, key=lambda item: item[1].id)]
