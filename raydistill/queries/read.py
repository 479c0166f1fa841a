"""From a file of JSON lines to Queries: every bad line is reported, exact duplicates become one."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from raydistill.core.errors import ConfigError
from raydistill.core.prompts import message_faults
from raydistill.core.records import Message, Query, digest

MERGED_LINES = "merged_lines"  # in Query.metadata: how many further lines said the same
SHOWN_FAULTS = 20

logger = logging.getLogger(__name__)


def read_queries(path: str | Path) -> list[Query]:
    """Return the queries of a file with one JSON object a line, `{"text": ...}` or `{"messages": [...]}`.

    A query's id is a digest of its messages. Lines with the same messages become one query, and
    `metadata["merged_lines"]` counts the further ones. Other keys of a line go to the metadata.

    Raises:
        ConfigError: the file is missing or empty, or lines are wrong: all of them are named together.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"queries: {path} does not exist. Give a file with one JSON object a line.")
    queries: dict[str, Query] = {}
    faults: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            query = _parse_line(line)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        merged = queries.get(query.id)
        if merged is not None:
            metadata = {**merged.metadata, MERGED_LINES: count_merged([merged]) + 1}
            query = dataclasses.replace(merged, metadata=metadata)
        queries[query.id] = query
    if faults:
        raise ConfigError(_describe(path, faults))
    if not queries:
        raise ConfigError(f'queries: {path} holds no queries. Write one JSON object a line, like {{"text": "..."}}.')
    merged_lines = count_merged(list(queries.values()))
    if merged_lines:
        logger.info("%s: %d repeated lines were merged; %d queries.", path, merged_lines, len(queries))
    return list(queries.values())


def count_merged(queries: list[Query]) -> int:
    """Return how many lines said what another line said already."""
    return sum(query.metadata.get(MERGED_LINES, 0) for query in queries)


def _parse_line(line: bytes) -> Query:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(value, dict):
        raise ValueError('not a JSON object; write {"text": "..."}')
    messages = _messages_of(value)
    try:
        identifier = digest(messages)
    except UnicodeEncodeError as error:
        raise ValueError("the text holds half of a surrogate pair, which is no character") from error
    metadata = {key: item for key, item in value.items() if key not in ("text", "messages", MERGED_LINES)}
    return Query(identifier, messages, metadata)


def _messages_of(value: dict[str, Any]) -> list[Message]:
    if ("text" in value) == ("messages" in value):
        raise ValueError('needs either "text" or "messages"')
    if "text" in value:
        text = value["text"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError('"text" holds no text')
        return [{"role": "user", "content": text}]
    faults = message_faults(value["messages"])
    if faults:
        raise ValueError("; ".join(faults))
    if value["messages"][-1]["role"] != "user":
        raise ValueError("the last message must be a user's")
    return value["messages"]


def _describe(path: Path, faults: list[str]) -> str:
    shown = "\n  ".join(faults[:SHOWN_FAULTS])
    more = f"\n  and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
    return (
        f"queries: {path} has {len(faults)} bad lines:\n  {shown}{more}\n"
        'Each line must be a JSON object with "text", or "messages" that end with a user\'s.'
    )
