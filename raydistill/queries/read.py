"""From a file or a folder of files to Queries, one by one: every bad row is reported, exact duplicates become one."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from raydistill.core.errors import ConfigError
from raydistill.core.records import Query
from raydistill.queries.files import SourceFile, find_files, read_rows
from raydistill.queries.names import NameLedger
from raydistill.queries.rows import MERGED_LINES, USER_ID, query_from_row

SHOWN_FAULTS = 20

logger = logging.getLogger(__name__)


def iter_queries(source: str | Path, check_names: bool = True) -> Iterator[Query]:
    """Yield the queries of a source one after another, in an order that is always the same; duplicates are yielded too.

    A source is a .jsonl, .ndjson, .json (lines), .csv, .parquet or .txt file, or a folder of those, local or s3://.
    A row has `text` or `messages`, may have an `id` of the user's own, and its other keys become metadata.

    A bad row does not end it: after the last row one ConfigError names all of them. So what is made of a source that
    was not read before counts only when the iterator has ended; `scan_queries` reads it to its end.

    Args:
        source: a path or a URI.
        check_names: whether to refuse an `id` that two different texts have. It costs 24 bytes of memory for each row
            with an `id`, and a source that was read once need not be checked again.

    Raises:
        ConfigError: there is no such source, it is empty, or rows are wrong.
        StorageError: reading broke off.
    """
    return _iterate(source, find_files(source), check_names)


def _iterate(source: str | Path, files: list[SourceFile], check_names: bool) -> Iterator[Query]:
    faults = _Faults(str(source), files)
    names = NameLedger()
    for file_index, file in enumerate(files):
        number = 0
        try:
            for number, row in read_rows(file):
                try:
                    if isinstance(row, ValueError):
                        raise row
                    query = query_from_row(row)
                except ValueError as error:
                    faults.add(file, number, str(error))
                    continue
                if check_names and query.metadata.get(USER_ID) is not None:
                    names.add(query.metadata[USER_ID], query.id, file_index, number)
                yield query
        except ValueError as error:  # the file as a whole
            faults.add(file, None, str(error))
            continue
        if not number:
            faults.add(file, None, 'holds no queries. Write one JSON object a line, like {"text": "..."}')
    for clash in names.find_clashes():
        (file_index, number), (first_index, first_number) = clash
        first = files[first_index]
        where = f"{first.unit} {first_number}" + (f" of {first.name}" if first_index != file_index else "")
        faults.add(files[file_index], number, f"has the id of {where}, but another text")
    faults.raise_all()


def read_queries(source: str | Path) -> list[Query]:
    """Return the queries of a source that is small enough to be held in memory; see `iter_queries`.

    Rows with the same messages become one query, and `metadata["merged_lines"]` counts the further ones.

    Raises:
        ConfigError: the source is missing or empty, or rows are wrong: all of them are named together.
    """
    queries: dict[str, Query] = {}
    for query in iter_queries(source):
        merged = queries.get(query.id)
        if merged is not None:
            metadata = {**merged.metadata, MERGED_LINES: count_merged([merged]) + 1}
            query = dataclasses.replace(merged, metadata=metadata)
        queries[query.id] = query
    merged_lines = count_merged(queries.values())
    if merged_lines:
        logger.info("%s: %d repeated lines were merged; %d queries.", source, merged_lines, len(queries))
    return list(queries.values())


def count_merged(queries: Iterable[Query]) -> int:
    """Return how many lines said what another line said already."""
    return sum(query.metadata.get(MERGED_LINES, 0) for query in queries)


class _Faults:
    """What is wrong with a source; of many faults the first are kept, and their number."""

    def __init__(self, source: str, files: list[SourceFile]) -> None:
        self._source = source
        self._is_folder = len(files) != 1 or files[0].name != source
        self._units = {f"{file.unit}s" for file in files}
        self._shown: list[str] = []
        self._num_faults = 0
        self._files_only = True

    def add(self, file: SourceFile, number: int | None, what: str) -> None:
        """Add what is wrong with a row, or (number None) with a file as a whole."""
        self._num_faults += 1
        self._files_only &= number is None
        if len(self._shown) < SHOWN_FAULTS:
            name = [file.name] if self._is_folder else []
            place = ", ".join(name if number is None else [*name, f"{file.unit} {number}"])
            self._shown.append(f"{place}: {what}" if place else what)

    def raise_all(self) -> None:
        """Raise one ConfigError for all faults, if there are any."""
        if not self._num_faults:
            return
        if self._files_only and self._num_faults == 1:
            raise ConfigError(f"queries: {self._source}: {self._shown[0]}.")
        hidden = self._num_faults - len(self._shown)
        shown = "\n  ".join([*self._shown, f"and {hidden} more"] if hidden else self._shown)
        raise ConfigError(
            f"queries: {self._source} has {self._num_faults} bad {' and '.join(sorted(self._units))}:\n  {shown}\n"
            'Each needs "text", or "messages" that end with a user\'s; a line of .jsonl is one JSON object.'
        )
