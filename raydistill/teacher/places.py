"""Places at the teacher: rows that are asked at a time, a number that changes while rows are being asked."""

import contextlib
import threading
from collections.abc import Iterator


class Places:
    """Lets so many threads in at a time; how many may change at any time."""

    def __init__(self, number: int) -> None:
        """Take the number of places to begin with."""
        self._free = number
        self._number = number
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, number: int = 1) -> Iterator[None]:
        """Hold places while the body runs; waits until one is free.

        Args:
            number: of them. Several are taken as soon as one is free, so that a call of many rows always gets its turn.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0)
            self._free -= number
        try:
            yield
        finally:
            with self._changed:
                self._free += number
                self._changed.notify_all()

    def resize(self, number: int) -> None:
        """Set the number of places; where there are fewer now, nobody is sent away."""
        with self._changed:
            self._free += number - self._number
            self._number = number
            self._changed.notify_all()
