"""The folder of a run (log_path): its resolved config, its metrics, how it ended.

It holds config.json (what decides the outcome, and all keys; a run with other ones is refused), rows.arrow (the
encoded rows, so that any worker on any node reads the same; rowfile.py), metrics.jsonl (one line a step:
stage/name_unit), checkpoints/ (saved.py) and, when it is finished, adapter/, loss.png and result.json.
"""

import json
import time
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import ConflictError, NotFoundError
from raydistill.core.uris import join

CONFIG, METRICS = "config.json", "metrics.jsonl"
FAILURE, RESULT = "failure.txt", "result.json"
WRITE_SECONDS = 2.0  # metrics.jsonl is one object, replaced as a whole
WRITE_SHARE = 0.02  # of the time, at most: a long run's grows to tens of megabytes


def claim_run(log_uri: str, decides: dict[str, Any], config: dict[str, Any]) -> None:
    """Take a run's folder for exactly this outcome, or go on in it.

    Args:
        log_uri: the run's folder.
        decides: what decides the outcome.
        config: all keys, for people to read.

    Raises:
        ConflictError: the folder holds another run.
    """
    uri = join(log_uri, CONFIG)
    text = json.dumps({"decides": decides, "config": config}, indent=2, sort_keys=True) + "\n"
    try:
        there = json.loads(storage.read_bytes(uri))["decides"]
    except NotFoundError:
        storage.write_bytes(uri, text.encode(), if_match=storage.ABSENT)
        return
    decides = json.loads(json.dumps(decides))
    other = sorted(key for key in {*there, *decides} if there.get(key) != decides.get(key))
    if other:
        raise ConflictError(
            f"log_path: {log_uri} holds a run with another {', '.join(other)}. "
            "Give another log_path, or leave it out for one of its own."
        )
    storage.write_bytes(uri, text.encode())


def check_run_dir(log_uri: str) -> None:
    """Refuse a folder that holds something else than a run.

    Raises:
        ConflictError: names what is there.
    """
    names = storage.list_names(log_uri)
    if names and CONFIG not in names:
        raise ConflictError(
            f"log_path: {log_uri} holds {', '.join(names[:5])} and is no run's folder. Give an empty one."
        )


def write_failure(log_uri: str, text: str) -> None:
    """Leave for the driver why a run cannot go on."""
    storage.write_bytes(join(log_uri, FAILURE), text.encode())


def take_failure(log_uri: str) -> str | None:
    """Return what `write_failure` left, and delete it; None where there is nothing."""
    uri = join(log_uri, FAILURE)
    try:
        text = storage.read_bytes(uri).decode()
    except NotFoundError:
        return None
    storage.delete(uri)
    return text


def write_result(log_uri: str, result: dict[str, Any]) -> None:
    """Mark a run as finished: its adapter is in its place."""
    storage.write_bytes(join(log_uri, RESULT), (json.dumps(result, indent=2) + "\n").encode())


def read_result(log_uri: str) -> dict[str, Any] | None:
    """Return what `write_result` wrote, None for a run that is not finished."""
    try:
        return json.loads(storage.read_bytes(join(log_uri, RESULT)))
    except NotFoundError:
        return None


def read_metrics(log_uri: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics; none where it has not begun."""
    try:
        data = storage.read_bytes(join(log_uri, METRICS))
    except NotFoundError:
        return []
    return [json.loads(line) for line in data.splitlines()]


class MetricsLog:
    """The lines of a run's metrics, written every few seconds; a run that goes on keeps the earlier ones."""

    def __init__(self, log_uri: str, steps_done: int) -> None:
        """Take over the lines up to the step that the run goes on from."""
        self._uri = join(log_uri, METRICS)
        self._lines = [line for line in read_metrics(log_uri) if line["step"] <= steps_done] if steps_done else []
        self._written = self._cost_seconds = 0.0
        self._num_unwritten = 0

    def add(self, line: dict[str, Any]) -> None:
        """Append a line and write where it is time."""
        self._lines.append(line)
        self._num_unwritten += 1
        if time.monotonic() - self._written > max(WRITE_SECONDS, self._cost_seconds / WRITE_SHARE):
            self.write()

    def write(self) -> None:
        """Write all lines now, where there are any that are not written yet."""
        if not self._num_unwritten:
            return
        start = time.monotonic()
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        storage.write_bytes(self._uri, text.encode())
        self._num_unwritten = 0
        self._written = time.monotonic()
        self._cost_seconds = self._written - start
