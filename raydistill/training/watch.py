"""What the driver does while the workers train: read the run's metrics and pass them on."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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

    def poll() -> None:
        last = -1
        while True:
            stopped = stop.wait(POLL_SECONDS)
            lines = read_metrics(log_uri)
            newest = lines[-1]["step"] if lines else -1
            if newest < last:  # workers were lost and go on from an earlier step
                last = newest
            for line in lines:
                if line["step"] > last:
                    _pass_on(line, trackers)
            if newest > last and on_progress is not None:
                on_progress(newest, num_steps, lines[-1])
            last = newest
            if stopped:
                return

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=CLOSE_SECONDS)
        for tracker in trackers:
            tracker.close()


def _pass_on(line: dict[str, Any], trackers: Sequence[Tracker]) -> None:
    numbers = {key: float(value) for key, value in line.items() if key != "step" and isinstance(value, (int, float))}
    for tracker in trackers:
        try:
            tracker.add(line["step"], numbers)
        except Exception as error:  # noqa: BLE001 - a foreign service; metrics.jsonl has everything
            logger.warning("%s did not take step %d: %s", type(tracker).__name__, line["step"], error)
