"""The files of a source (one file, or a folder of them, local or in S3) and their rows, format by format."""

import codecs
import csv
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import ConfigError, NotFoundError, StorageError
from raydistill.core.uris import absolute, is_remote
from raydistill.queries.rows import parse_messages
from raydistill.queries.tables import read_parquet

BUFFER_BYTES = 8 << 20  # each refill of the buffer is one request to an object store
MAX_LINE_BYTES = 64 << 20  # a longer line is another kind of file, and would be read into memory whole

Row = tuple[int, dict[str, Any] | ValueError]  # number of the line or row from 1, and the row or what is wrong with it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        uri: where it is.
        name: how messages name it: as the user wrote it, or its name in the folder.
    """

    uri: str
    name: str

    @property
    def unit(self) -> str:
        """What the numbers of its rows count: "line" or "row"."""
        return "row" if _suffix(self.name) == ".parquet" else "line"


def find_files(source: str | Path) -> list[SourceFile]:
    """Return the files of a source, those of a folder sorted by name; hidden ones are left out.

    Raises:
        ConfigError: there is no such place, or it holds nothing that can be read.
    """
    source = str(source)
    try:
        uri = absolute(source)
        if not source.endswith("/") and storage.exists(uri):
            if _suffix(source) not in READERS:
                raise ConfigError(f"queries: {source} has the suffix {_suffix(source)!r}; {_ALLOWED}.")
            return [SourceFile(uri, source)]
        names = storage.list_names(uri)
    except (StorageError, NotFoundError) as error:  # found before the start, it is bad input
        raise ConfigError(f"queries: {error.args[0]}") from error
    if not names:
        raise ConfigError(_describe_absence(source, uri))
    return _files_of_folder(source, uri, names)


def _files_of_folder(source: str, uri: str, names: list[str]) -> list[SourceFile]:
    known = [name for name in names if _suffix(name) in READERS]
    filesystem, path = storage.filesystem(uri)
    found = filesystem.get_file_info([f"{path.rstrip('/')}/{name}" for name in known])
    files = [SourceFile(f"{uri}/{name}", name) for name, info in zip(known, found, strict=True) if info.is_file]
    others = sorted({*names} - {file.name for file in files})
    if others:
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        logger.info("%s: not read, being no files of queries: %s%s.", source, ", ".join(others[:10]), more)
    if not files:
        raise ConfigError(f"queries: the folder {source} holds no files of queries; {_ALLOWED}.")
    return files


def _describe_absence(source: str, uri: str) -> str:
    if not is_remote(uri) and Path(uri).is_dir():
        return f"queries: the folder {source} holds no files of queries; {_ALLOWED}."
    return f"queries: {source} does not exist. Give a file with one JSON object a line, or a folder; {_ALLOWED}."


def read_rows(file: SourceFile) -> Iterator[Row]:
    """Yield the rows of a file one by one, and in their place what is wrong with those that are unreadable.

    Raises:
        ValueError: the file as a whole is not what its name says, or cannot be opened.
        StorageError: reading broke off.
    """
    filesystem, path = storage.filesystem(file.uri)
    try:
        stream = filesystem.open_input_file(path)
    except OSError as error:
        raise ValueError(f"cannot be opened ({error})") from error
    with stream:
        try:
            yield from READERS[_suffix(file.name)](stream)
        except OSError as error:
            raise StorageError(f"{file.uri}: reading broke off: {error}. Give the same command again.") from error


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _read_lines(stream: Any) -> Iterator[tuple[int, str | ValueError]]:
    """Yield the lines of a UTF-8 text with their numbers, line ends included."""
    with io.BufferedReader(stream, BUFFER_BYTES) as reader:
        number = 0
        while line := reader.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                yield number, ValueError(f"longer than {MAX_LINE_BYTES >> 20} MiB; nothing behind it was read")
                return
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                yield number, ValueError(f"not UTF-8 (byte {error.start})")


def _read_json_lines(stream: Any) -> Iterator[Row]:
    for number, line in _read_lines(stream):
        if isinstance(line, ValueError):
            yield number, line
        elif not line.isspace():
            yield number, _parse_json_line(line)


def _parse_json_line(line: str) -> dict[str, Any] | ValueError:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON ({error.msg}, column {error.colno})")
    except (RecursionError, ValueError) as error:  # nested a thousand times, or a number of thousands of digits
        return ValueError(f"not JSON that can be read ({error})")
    if not isinstance(value, dict):
        return ValueError('not a JSON object; write {"text": "..."}')
    return value


def _read_text(stream: Any) -> Iterator[Row]:
    for number, line in _read_lines(stream):
        if isinstance(line, ValueError):
            yield number, line
        elif text := line.strip():
            yield number, {"text": text}


def _read_csv(stream: Any) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)  # Python's own limit of 128 KiB is shorter than some queries
    undecoded: list[ValueError] = []

    def decode() -> Iterator[str]:
        for _, line in _read_lines(stream):
            if isinstance(line, ValueError):
                undecoded.append(line)
            yield line if isinstance(line, str) else "\n"

    rows = csv.reader(decode(), strict=True)  # not strict, an open quote would swallow the rest of the file
    header: list[str] | None = None
    while True:
        number = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield number, ValueError(f"not CSV ({error})")
            continue
        if undecoded and header is None:
            raise ValueError(f"the first line, which names the columns, is {undecoded[0]}")
        if undecoded:
            yield number, undecoded.pop()
            undecoded.clear()
        elif cells is None:
            return
        elif header is None:
            header = cells
            _check_header(header)
        elif cells:
            yield number, _row_of_cells(header, cells)


def _check_header(header: list[str]) -> None:
    columns = ", ".join(header)
    if not {"text", "messages"} & {*header}:
        raise ValueError(f'the first line names no column "text" or "messages"; the columns are {columns}')
    if len({*header}) < len(header):
        raise ValueError(f"the first line names a column twice; the columns are {columns}")


def _row_of_cells(header: list[str], cells: list[str]) -> dict[str, Any] | ValueError:
    if len(cells) != len(header):
        return ValueError(f"has {len(cells)} cells, and the first line names {len(header)} columns")
    row: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    try:
        if "messages" in row:
            row["messages"] = parse_messages(row["messages"])
        elif "messages" not in header:
            row.setdefault("text", "")  # so that it is an empty text and no missing column
    except ValueError as error:
        return error
    return row


READERS: dict[str, Callable[[Any], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": read_parquet,
    ".txt": _read_text,
}
_ALLOWED = f"read are {', '.join(READERS)}"
