"""The folder of a run (log_path): its rows, its resolved config, its metrics.

It holds config.json (what decides the outcome, and all keys; a run with other ones is refused), rows.parquet (the
encoded rows, so that any worker on any node reads the same), metrics.jsonl (one line a step: stage/name_unit) and
the checkpoints that Ray Train writes.
"""

import io
import json
import time
from collections.abc import Sequence
from typing import Any

from raydistill.core import storage, topk
from raydistill.core.errors import ConflictError, NotFoundError
from raydistill.core.uris import join
from raydistill.training.batches import EncodedRow

CONFIG, ROWS, METRICS = "config.json", "rows.parquet", "metrics.jsonl"
WRITE_SECONDS = 2.0  # metrics.jsonl is one object, replaced as a whole


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


def write_rows(log_uri: str, train: Sequence[EncodedRow], validation: Sequence[EncodedRow]) -> None:
    """Write the rows of a run in their order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [*train, *validation]
    table = pa.table(
        {
            "id": [row.id for row in rows],
            "prompt_tokens": pa.array([row.prompt_tokens for row in rows], pa.list_(pa.int32())),
            "response_tokens": pa.array([row.response_tokens for row in rows], pa.list_(pa.int32())),
            "is_validation": [False] * len(train) + [True] * len(validation),
            "teacher_tokens": pa.array([row.teacher_tokens for row in rows], pa.list_(pa.int32())),
            "is_generic": [row.is_generic for row in rows],
            **_label_columns(rows),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **topk.parquet_options(table.schema))
    storage.write_bytes(join(log_uri, ROWS), buffer.getvalue())


def _label_columns(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """Return the columns of soft labels; none where no row has any."""
    sizes = {row.top_ids.shape[1] for row in rows if row.top_ids is not None}
    fields = topk.top_fields(sizes.pop()) if sizes else []
    return {field.name: topk.to_column([getattr(row, field.name) for row in rows], field) for field in fields}


def read_rows(log_uri: str) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """Return the training and the validation rows that `write_rows` wrote."""
    import pyarrow.parquet as pq

    train, validation = [], []
    for row in topk.read_rows(pq.read_table(io.BytesIO(storage.read_bytes(join(log_uri, ROWS))))):
        rows = validation if row.pop("is_validation") else train
        rows.append(EncodedRow(**row))
    return train, validation


def read_metrics(log_uri: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics; none where it has not begun."""
    try:
        data = storage.read_bytes(join(log_uri, METRICS))
    except NotFoundError:
        return []
    return [json.loads(line) for line in data.splitlines()]


class MetricsLog:
    """The lines of a run's metrics, written at most every two seconds; a run that goes on keeps the earlier ones."""

    def __init__(self, log_uri: str, steps_done: int) -> None:
        """Take over the lines up to the step that the run goes on from."""
        self._uri = join(log_uri, METRICS)
        self._lines = [line for line in read_metrics(log_uri) if line["step"] <= steps_done] if steps_done else []
        self._written = 0.0

    def add(self, line: dict[str, Any]) -> None:
        """Append a line and write where it is time."""
        self._lines.append(line)
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write all lines now."""
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        storage.write_bytes(self._uri, text.encode())
        self._written = time.monotonic()
