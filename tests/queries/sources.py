"""Query sources of every format, made of the same rows."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.core.records import Query, digest
from tests.jsonl import write_jsonl

Row = dict[str, Any]


def make_query(text: str, **metadata: Any) -> Query:
    """Return the query that one user message is."""
    messages = [{"role": "user", "content": text}]
    return Query(digest(messages), messages, metadata)


def columns_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def write_csv(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns_of(rows))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: json.dumps(cell) if key == "messages" and cell else cell for key, cell in row.items()}
            )
    return path


def write_parquet(path: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in columns_of(rows)}), path)
    return path


def write_parquet_of_json(path: Path, rows: list[Row]) -> Path:
    """Write Parquet in which messages are text."""
    return write_parquet(
        path,
        [{key: json.dumps(cell) if key == "messages" and cell else cell for key, cell in row.items()} for row in rows],
    )


def write_rows(path: Path, rows: list[Row]) -> Path:
    return write_jsonl(path, *rows)


FORMATS: dict[str, Callable[[Path, list[Row]], Path]] = {
    "q.jsonl": write_rows,
    "q.ndjson": write_rows,
    "q.json": write_rows,
    "q.csv": write_csv,
    "q.parquet": write_parquet,
    "json-in.parquet": write_parquet_of_json,
}
