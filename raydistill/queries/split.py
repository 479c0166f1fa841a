"""From Queries to those that are asked for training and those that are held out for evaluation."""

import hashlib
from collections.abc import Iterable

from raydistill.core.records import Query

HELD_OUT = 0.2  # of the queries, about


def is_held_out(query: Query, held_out: float = HELD_OUT) -> bool:
    """Return whether a query is held out for evaluation, by a hash of its normalised text alone.

    A query keeps its side whatever else is in the source, and queries that differ only in letter case or
    white space are on the same side.

    Args:
        query: one query.
        held_out: about which share is held out, 0 to 1.
    """
    return _position(query) < held_out


def split_queries(queries: Iterable[Query], held_out: float = HELD_OUT) -> tuple[list[Query], list[Query]]:
    """Return (training, held-out) queries as lists; see `is_held_out`, which needs no list."""
    sides: tuple[list[Query], list[Query]] = ([], [])
    for query in queries:
        sides[is_held_out(query, held_out)].append(query)
    return sides


def normalise(query: Query) -> str:
    """Return a query's text with case folded and white space made single: one line for each message."""
    return "\n".join(f"{message['role']}: {normalise_text(message['content'])}" for message in query.messages)


def normalise_text(text: str) -> str:
    """Return a text on one line with case folded and white space made single."""
    return " ".join(text.casefold().split())


def _position(query: Query) -> float:
    """Return a number in [0, 1) that depends on the normalised text only."""
    return int(hashlib.sha256(normalise(query).encode()).hexdigest()[:12], 16) / 16**12
