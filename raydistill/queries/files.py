"""The files of a source (one file, or a folder of them, local or in S3) and their rows, format by format."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import ConfigError, NotFoundError, StorageError
from raydistill.core.uris import absolute, is_remote
from raydistill.queries.lines import Row, read_json_lines, read_text
from raydistill.queries.tables import read_csv, read_parquet

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
        has_key = not is_remote(uri) or "/" in uri.removeprefix("s3://")
        if is_file := has_key and not source.endswith("/") and storage.exists(uri):
            names = [source]
        else:
            names = storage.list_names(uri)
    except (ConfigError, StorageError, NotFoundError) as error:  # found before the start, it is bad input
        raise ConfigError(f"queries: {error.args[0]}") from error
    if is_file and _suffix(source) not in READERS:
        raise ConfigError(f"queries: {source} has the suffix {_suffix(source)!r}; {_ALLOWED}.")
    if is_file:
        return [SourceFile(uri, source)]
    if not names:
        raise ConfigError(_describe_absence(source, uri))
    return _files_of_folder(source, uri, names)


def _files_of_folder(source: str, uri: str, names: list[str]) -> list[SourceFile]:
    known = [name for name in names if _suffix(name) in READERS]
    try:
        filesystem, path = storage.filesystem(uri)
        found = filesystem.get_file_info([f"{path.rstrip('/')}/{name}" for name in known])
    except OSError as error:
        raise ConfigError(f"queries: {source} cannot be listed: {error}.") from error
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


READERS: dict[str, Callable[[Any], Iterator[Row]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_lines,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
_ALLOWED = f"read are {', '.join(READERS)}"
