"""Ids of queries by the million: 16 bytes each, as the two halves of the number that an id is."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def pack_ids(ids: Iterable[str]) -> "np.ndarray":
    """Return ids as an array [ids, 2] of uint64."""
    packed = bytearray()
    for identifier in ids:
        packed += bytes.fromhex(identifier)
    return unpack(packed)


def unpack(packed: bytearray) -> "np.ndarray":
    """Return the array [ids, 2] of ids that were appended as `bytes.fromhex(id)`."""
    import numpy as np

    return np.frombuffer(packed, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def id_of(ids_R2: "np.ndarray", row: int) -> str:
    """Return one id of the array as text."""
    high, low = ids_R2[row]
    return f"{int(high):016x}{int(low):016x}"
