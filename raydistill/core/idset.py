"""Many ids in little memory: 16 bytes each in one sorted array, where a Python set takes 130."""

from collections.abc import Iterable

import numpy as np

ID_TYPE = "S16"
ID_DIGITS = 32


def pack_ids(ids: Iterable[str]) -> np.ndarray:
    """Return ids of 32 hexadecimal digits as an array of 16 bytes each, in their order."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=ID_TYPE)


def unpack_ids(ids: np.ndarray) -> list[str]:
    """Return packed ids as texts of 32 hexadecimal digits; numpy hides the zeros that 16 bytes end with."""
    return [packed.ljust(ID_DIGITS // 2, b"\0").hex() for packed in ids.tolist()]


def find_positions(sorted_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return where in `sorted_ids` each of `ids` is, int64; -1 where it is not."""
    if not len(sorted_ids):
        return np.full(len(ids), -1, dtype=np.int64)
    positions = np.searchsorted(sorted_ids, ids)
    positions[positions == len(sorted_ids)] = 0
    return np.where(sorted_ids[positions] == ids, positions, -1)


def contains(sorted_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return for each of `ids` whether it is in `sorted_ids`."""
    return find_positions(sorted_ids, ids) >= 0
