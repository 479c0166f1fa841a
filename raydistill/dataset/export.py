"""From Examples to one `.jsonl` file that any other tool can read."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from raydistill.core import storage
from raydistill.core.patience import patiently
from raydistill.core.records import Example, Message


def to_jsonl(examples: list[Example]) -> bytes:
    """Return one line an example: `{"messages": [..., {"role": "assistant", "content": response}]}`."""
    return b"".join(_to_line(example.messages, example.response) for example in examples)


class JsonlExport:
    """Writes examples, table by table, into one `.jsonl`, which appears only when `publish` is called."""

    def __init__(self, uri: str) -> None:
        """Take the place of the file."""
        self._uri = uri
        self._folder = tempfile.TemporaryDirectory(prefix="raydistill-export-")
        self._path = Path(self._folder.name) / "examples.jsonl"
        self._file = self._path.open("wb")

    def __enter__(self) -> "JsonlExport":
        """Return itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Forget what was not published."""
        self._file.close()
        self._folder.cleanup()

    def add(self, examples: pa.Table) -> None:
        """Append the lines of a table of examples."""
        columns = zip(examples["messages"].to_pylist(), examples["response"].to_pylist(), strict=True)
        self._file.writelines(_to_lines(columns))

    def publish(self) -> None:
        """Put the file where it belongs, in one step."""
        self._file.close()
        patiently(lambda: storage.upload(self._path, self._uri))


def _to_lines(columns: Iterable[tuple[str, str]]) -> Iterable[bytes]:
    return (_to_line(json.loads(messages), response) for messages, response in columns)


def _to_line(messages: list[Message], response: str) -> bytes:
    turns = [*messages, {"role": "assistant", "content": response}]
    return json.dumps({"messages": turns}, ensure_ascii=False).encode() + b"\n"
