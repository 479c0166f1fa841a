"""From Queries to those that are asked for training and those that are held out for evaluation."""

import hashlib

from raydistill.core.records import Query


def split_queries(queries: list[Query], held_out: float = 0.2) -> tuple[list[Query], list[Query]]:
    """Return (training, held-out) queries, by a hash of the normalised text alone.

    A query keeps its side whatever else is in the file, and queries that differ only in letter case or
    white space are on the same side.

    Args:
        queries: all of them.
        held_out: about which share is held out, 0 to 1.
    """
    training = [query for query in queries if _position(query) >= held_out]
    return training, [query for query in queries if _position(query) < held_out]


def normalise(query: Query) -> str:
    """Return a query's text with case folded and white space made single."""
    return "\n".join(
        f"{message['role']}: {' '.join(message['content'].casefold().split())}" for message in query.messages
    )


def _position(query: Query) -> float:
    """Return a number in [0, 1) that depends on the normalised text only."""
    return int(hashlib.sha256(normalise(query).encode()).hexdigest()[:12], 16) / 16**12
