"""Rows of tables, CSV and Parquet: the columns are looked at first, then the rows are read a few at a time."""

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any

from raydistill.queries.lines import MAX_LINE_BYTES, Row, read_lines
from raydistill.queries.rows import parse_messages

BATCH_ROWS = 4096  # rows of Parquet that are Python objects at a time


def read_csv(stream: Any) -> Iterator[Row]:
    """Yield the rows of a CSV file, numbered by the lines where they begin; an empty cell is a key that is not there.

    Raises:
        ValueError: the first line does not name the columns of queries.
    """
    header: list[str] | None = None
    for number, cells in _read_cells(stream):
        if header is None:
            if isinstance(cells, ValueError):
                raise ValueError(f"the first line, which names the columns, is {cells}")
            header = cells
            _check_names(header, ", ".join(header))
        elif isinstance(cells, ValueError):
            yield number, cells
        elif len(cells) != len(header):
            yield number, ValueError(f"has {len(cells)} cells, and the first line names {len(header)} columns")
        else:
            yield number, _make_row(header, [cell or None for cell in cells])


def _read_cells(stream: Any) -> Iterator[tuple[int, list[str] | ValueError]]:
    csv.field_size_limit(MAX_LINE_BYTES)  # Python's own limit of 128 KiB is shorter than some queries
    undecoded: list[ValueError] = []

    def decode() -> Iterator[str]:
        for _, line in read_lines(stream):
            if isinstance(line, ValueError):
                undecoded.append(line)
            yield line if isinstance(line, str) else "\n"

    rows = csv.reader(decode(), strict=True)  # not strict, an open quote would swallow the rest of the file
    while True:
        number = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield number, ValueError(f"not CSV ({error})")
            continue
        if undecoded:
            yield number, undecoded.pop()
            undecoded.clear()
        elif cells is None:
            return
        elif cells:
            yield number, cells


def read_parquet(stream: Any) -> Iterator[Row]:
    """Yield the rows of a Parquet file; a null is a key that is not there.

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
    _check_names(schema.names, columns)
    for name in {"text", "messages"} & {*schema.names}:
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not (is_text or pa.types.is_null(kind) or (name == "messages" and is_list)):
            allowed = "text" if name == "text" else "a list of {role, content}, or text that is JSON"
            raise ValueError(f"the column {name} must be {allowed}; the columns are {columns}")


def _check_names(names: Sequence[str], columns: str) -> None:
    if not {"text", "messages"} & {*names}:
        raise ValueError(f'there is no column "text" or "messages"; the columns are {columns}')
    if len({*names}) < len(names):
        raise ValueError(f"a column stands there twice; the columns are {columns}")


def _rows_of_batch(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    names = batch.schema.names
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except UnicodeDecodeError:  # so seldom that its rows may be slow
        yield from (_read_row(batch, names, index) for index in range(batch.num_rows))
        return
    for cells in zip(*columns, strict=True):
        yield _make_row(names, cells)


def _read_row(batch: Any, names: list[str], index: int) -> dict[str, Any] | ValueError:
    try:
        return _make_row(names, tuple(column[index].as_py() for column in batch.columns))
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 (byte {error.start})")


def _make_row(names: Sequence[str], cells: Sequence[Any]) -> dict[str, Any] | ValueError:
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
