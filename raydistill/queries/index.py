"""What is known of all queries after one look at each: 16 bytes a query, and a few of them whole."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from raydistill.core.idset import pack_ids
from raydistill.core.records import Query


@dataclass(frozen=True)
class QueryIndex:
    """The queries of a source.

    Attributes:
        ids: sorted packed ids, each once.
        num_merged: how many further rows said what another row said already.
        forms: one query of each sequence of roles.
        sample: some of them, always the same ones.
        shortest: the one with the fewest characters.
    """

    ids: np.ndarray
    num_merged: int
    forms: list[Query]
    sample: list[Query]
    shortest: Query


def scan_queries(queries: Iterable[Query]) -> QueryIndex:
    """Return what is known of a stream of queries."""
    items = list(queries)
    ids = np.unique(pack_ids(query.id for query in items))
    forms = {tuple(message["role"] for message in query.messages): query for query in items}
    merged = sum(query.metadata.get("merged_lines", 0) for query in items)
    shortest = min(items, key=lambda query: sum(len(message["content"]) for message in query.messages))
    sample = sorted(items, key=lambda query: query.id)[:128]
    return QueryIndex(ids, merged + len(items) - len(ids), list(forms.values())[:16], sample, shortest)
