"""What the driver does while the workers train: read the run's metrics and pass them on."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raydistill.core.errors import RaydistillError
from raydistill.training.rundir import read_metrics
from raydistill.training.trackers import Tracker

POLL_SECONDS = 2.0
CLOSE_SECONDS = 30.0

Progress = Callable[[int, int, dict[str, Any]], None]  # (steps done, steps in all, the newest line of metrics)
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def watch(log_uri: str, num_steps: int, on_progress: Progress | None, trackers: Sequence[Tracker]) -> Iterator[None]:
    """Read the run's metrics every few seconds while the body trains.

    Args:
        log_uri: the run's folder.
        num_steps: of the whole run.
        on_progress: gets the newest line; None where nobody listens.
        trackers: get every line once, a line of a step that is done again after a loss of workers twice.
    """
    stop = threading.Event()
    reader = _Reader(log_uri, num_steps, on_progress, trackers)

    def poll() -> None:
        while not stop.wait(POLL_SECONDS):
            reader.read()
        reader.read()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=CLOSE_SECONDS)
        for tracker in trackers:
            tracker.close()


class _Reader:
    """Knows which lines were passed on."""

    def __init__(self, log_uri: str, num_steps: int, on_progress: Progress | None, trackers: Sequence[Tracker]) -> None:
        self._log_uri, self._num_steps = log_uri, num_steps
        self._on_progress, self._trackers = on_progress, trackers
        self._last = -1

    def read(self) -> None:
        """Pass on what is new."""
        try:
            lines = read_metrics(self._log_uri)
        except RaydistillError as error:  # the store, for a moment: the workers have a connection of their own
            logger.warning("The metrics could not be read: %s", error)
            return
        newest = lines[-1]["step"] if lines else -1
        last = min(self._last, newest)  # workers may have been lost and go on from an earlier step
        for line in lines:
            if line["step"] > last:
                _pass_on(line, self._trackers)
        if newest > last and self._on_progress is not None:
            self._on_progress(newest, self._num_steps, lines[-1])
        self._last = newest


def _pass_on(line: dict[str, Any], trackers: Sequence[Tracker]) -> None:
    numbers = {key: float(value) for key, value in line.items() if key != "step" and isinstance(value, (int, float))}
    for tracker in trackers:
        try:
            tracker.add(line["step"], numbers)
        except Exception as error:  # noqa: BLE001 - a foreign service; metrics.jsonl has everything
            logger.warning("%s did not take step %d: %s", type(tracker).__name__, line["step"], error)
