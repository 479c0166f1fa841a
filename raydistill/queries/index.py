"""One pass over all queries of a source: what is wrong, what stands there twice, and a few of them as examples."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raydistill.core.errors import ConfigError
from raydistill.core.idset import ID_TYPE
from raydistill.core.records import Query

if TYPE_CHECKING:
    import numpy as np

SAMPLE_SIZE = 128
MAX_ROLE_SEQUENCES = 64


@dataclass(frozen=True)
class QueryIndex:
    """What one pass over queries found, in 16 bytes a row.

    Attributes:
        ids: sorted packed ids (see core.idset) of the queries, each once.
        num_rows: how many rows were read.
        role_examples: the first query of each sequence of roles, of the first 64 sequences.
        sample: the queries with the smallest ids, in their order: the same ones whatever the order of the rows.
        shortest: the query with the fewest characters; None where there are no queries.
    """

    ids: "np.ndarray"
    num_rows: int
    role_examples: dict[tuple[str, ...], Query]
    sample: list[Query]
    shortest: Query | None

    @property
    def num_merged(self) -> int:
        """How many rows said what another row said already."""
        return self.num_rows - len(self.ids)


def scan_queries(queries: Iterable[Query], sample_size: int = SAMPLE_SIZE, may_be_empty: bool = False) -> QueryIndex:
    """Read queries to their end and return what they are; no row stays in memory but the examples.

    Args:
        queries: those of `iter_queries`, or some of them.
        sample_size: how many examples to keep in `QueryIndex.sample`.
        may_be_empty: where there need be none, since the teacher is going to write some.

    Raises:
        ConfigError: there are none, or what `iter_queries` found.
    """
    import numpy as np

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
    if shortest is None and not may_be_empty:
        raise ConfigError("queries: none are left to be asked. Give more queries.")
    packed = np.frombuffer(ids, dtype=ID_TYPE)
    return QueryIndex(np.unique(packed), len(packed), roles_seen, sample.sorted(), shortest and shortest[2])


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
