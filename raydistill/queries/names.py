"""Finds names (a user's own ids) that two different texts have, in 24 bytes a name."""

import hashlib
from array import array
from collections.abc import Iterator
from typing import Any

Place = tuple[int, int]  # index of the file, number of the line or row
_NUMBER_BITS = 44


class NameLedger:
    """Names with the texts they were used for; only digests are kept, so a hundred million fit into memory."""

    def __init__(self) -> None:
        """Begin without names."""
        self._names = array("Q")
        self._texts = array("Q")
        self._places = array("Q")

    def add(self, name: Any, query_id: str, file_index: int, number: int) -> None:
        """Note that a row has a name; `1` and `"1"` are the same."""
        self._names.append(int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "big"))
        self._texts.append(int(query_id[:16], 16))
        self._places.append(file_index << _NUMBER_BITS | number)

    def find_clashes(self) -> Iterator[tuple[Place, Place]]:
        """Yield (place, place of the first row with that name) of each row whose text is another than the first's."""
        import numpy as np

        if not self._names:
            return
        names, texts, places = (
            np.frombuffer(column, dtype=np.uint64) for column in (self._names, self._texts, self._places)
        )
        order = np.argsort(names, kind="stable")  # rows of one name in the order in which they were read
        names, texts, places = names[order], texts[order], places[order]
        starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
        firsts = np.repeat(starts, np.diff(np.append(starts, len(names))))
        clashing = np.flatnonzero(texts != texts[firsts])
        for index in clashing[np.argsort(places[clashing], kind="stable")]:
            yield _place_of(places[index]), _place_of(places[firsts[index]])


def _place_of(packed: Any) -> Place:
    return int(packed) >> _NUMBER_BITS, int(packed) & ((1 << _NUMBER_BITS) - 1)
