"""Where a dataset's objects lie, and how an Example, a Drop and an Answer look as a Parquet row."""

import dataclasses
import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.core import storage
from raydistill.core.errors import DatasetError
from raydistill.core.records import Drop, Example, Shard
from raydistill.core.topk import parquet_options, read_rows, top_fields
from raydistill.core.uris import join

MANIFEST = "manifest.json"

EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("query_id", pa.string()),
        ("messages", pa.string()),  # JSON
        ("response", pa.string()),
        ("response_tokens", pa.list_(pa.int32())),
        ("teacher", pa.string()),
        ("prompt_digest", pa.string()),
    ]
)
DROP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # the answer's
        ("query_id", pa.string()),
        ("sample_index", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def example_schema(top_logprobs: int | None) -> pa.Schema:
    """Return EXAMPLE_SCHEMA, with the columns of soft labels where there are any; see `topk.top_fields`."""
    return pa.schema([*EXAMPLE_SCHEMA, *top_fields(top_logprobs)])


def folder_of(data_file: str) -> str:
    """Return the dataset's folder: `output_file` itself, or `<file>.d` where that is a `.jsonl`."""
    return f"{data_file}.d" if data_file.endswith(".jsonl") else data_file


def examples_from_table(table: pa.Table) -> list[Example]:
    """Return the Examples of a table of `example_schema`."""
    return [Example(**{**row, "messages": json.loads(row["messages"])}) for row in read_rows(table)]


def drop_to_row(drop: Drop) -> dict[str, Any]:
    """Return a Drop as a row of DROP_SCHEMA."""
    return dataclasses.asdict(drop)


def write_table(folder: str, name: str, table: pa.Table) -> Shard:
    """Write a table as one Parquet object, in one step; returns its entry for the manifest.

    Args:
        folder: the dataset's.
        name: of the object; where it holds `{}`, a digest of the content stands there.
        table: at least one row.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **parquet_options(table.schema))
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    name = name.format(sha256[:16])
    storage.write_bytes(join(folder, name), data)
    return Shard(uri=name, rows=table.num_rows, size_bytes=len(data), sha256=sha256)


def read_table(folder: str, shard: Shard) -> pa.Table:
    """Return a manifest's shard.

    Raises:
        DatasetError: the object is not the one that the manifest names.
    """
    uri = join(folder, shard.uri)
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise DatasetError(f"{uri} is not what {MANIFEST} says: its sha256 differs. Run create_data again.")
    table = pq.read_table(io.BytesIO(data))
    if table.num_rows != shard.rows:
        raise DatasetError(f"{uri} has {table.num_rows} rows, {MANIFEST} says {shard.rows}. Run create_data again.")
    return table
