"""Rows of a Parquet file: its columns are looked at first, then it is read batch by batch."""

import json
from collections.abc import Iterator
from typing import Any

from raydistill.queries.rows import parse_messages

BATCH_ROWS = 4096  # rows that are Python objects at a time


def read_parquet(stream: Any) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Yield the rows of a Parquet file with their numbers; a null is a key that the row does not have.

    Raises:
        ValueError: it is no Parquet file, or its columns are not those of queries.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(stream, pre_buffer=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"no Parquet file that can be read ({error})") from error
    _check_columns(file.schema_arrow)
    number = 0
    try:
        for batch in file.iter_batches(BATCH_ROWS):
            for row in _rows_of_batch(batch):
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        yield number + 1, ValueError(f"the file cannot be read from here on ({error})")


def _check_columns(schema: Any) -> None:
    import pyarrow as pa

    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if not {"text", "messages"} & {*schema.names}:
        raise ValueError(f'there is no column "text" or "messages"; the columns are {columns}')
    if len({*schema.names}) < len(schema.names):
        raise ValueError(f"a column stands there twice; the columns are {columns}")
    for name in {"text", "messages"} & {*schema.names}:
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not (is_text or pa.types.is_null(kind) or (name == "messages" and is_list)):
            allowed = "text" if name == "text" else "a list of {role, content}, or text that is JSON"
            raise ValueError(f"the column {name} must be {allowed}; the columns are {columns}")


def _rows_of_batch(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    names = batch.schema.names
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except UnicodeDecodeError:  # so seldom that its rows may be slow
        yield from (_read_row(batch, names, index) for index in range(batch.num_rows))
        return
    for cells in zip(*columns, strict=True):
        yield _row_of_cells(names, cells)


def _read_row(batch: Any, names: list[str], index: int) -> dict[str, Any] | ValueError:
    try:
        return _row_of_cells(names, tuple(column[index].as_py() for column in batch.columns))
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 (byte {error.start})")


def _row_of_cells(names: list[str], cells: tuple[Any, ...]) -> dict[str, Any] | ValueError:
    # NaN is what pandas writes for a missing number.
    row = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None and cell == cell}
    for name, cell in row.items():
        if not isinstance(cell, (str, int, float)) and name != "messages":
            row[name] = json.loads(json.dumps(cell, default=str))  # dates and the like: metadata is JSON
    if isinstance(row.get("messages"), str):
        try:
            row["messages"] = parse_messages(row["messages"])
        except ValueError as error:
            return error
    if "text" in names and "messages" not in names:
        row.setdefault("text", "")  # so that it is an empty text and no missing column
    return row
