"""Rows of files that are read line by line: JSON lines, and plain text with one query a line."""

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

BUFFER_BYTES = 8 << 20  # each refill of the buffer is one request to an object store
MAX_LINE_BYTES = 64 << 20  # a longer line is another kind of file, and would be read into memory whole

Row = tuple[int, dict[str, Any] | ValueError]  # number of the line or row from 1, and the row or what is wrong with it


def read_lines(stream: Any) -> Iterator[tuple[int, str | ValueError]]:
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


def read_json_lines(stream: Any) -> Iterator[Row]:
    """Yield the object of each line; blank lines are skipped."""
    for number, line in read_lines(stream):
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


def read_text(stream: Any) -> Iterator[Row]:
    """Yield each line as a row with `text`, without the white space around it; blank lines are skipped."""
    for number, line in read_lines(stream):
        if isinstance(line, ValueError):
            yield number, line
        elif text := line.strip():
            yield number, {"text": text}
