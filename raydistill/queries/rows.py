"""One row of a source, whatever the format of its file, becomes a Query."""

import json
from typing import Any

from raydistill.core.prompts import message_faults
from raydistill.core.records import Message, Query, canonical_json, digest

MERGED_LINES = "merged_lines"  # in Query.metadata: how many further rows said the same
USER_ID = "id"  # in Query.metadata: the user's own name of the row
_NOT_METADATA = {"text", "messages", MERGED_LINES}
_HALF = "the {} holds half of a surrogate pair, which is no character"


def query_from_row(row: dict[str, Any]) -> Query:
    """Return the Query of a row with `text` or `messages`; the row's other keys become its metadata.

    A query's id is a digest of its messages. A row's own `id` stands in the metadata.

    Raises:
        ValueError: says what is wrong with the row.
    """
    messages = _messages_of(row)
    try:
        identifier = digest(messages)
    except UnicodeEncodeError as error:
        raise ValueError(_HALF.format("text")) from error
    metadata = {key: value for key, value in row.items() if key not in _NOT_METADATA} if len(row) > 1 else {}
    if metadata:
        _check_metadata(metadata)
    return Query(identifier, messages, metadata)


def parse_messages(text: str) -> Any:
    """Return the messages that a cell of a table holds as JSON.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'"messages" is not JSON ({error.msg}, column {error.colno})') from error
    except (RecursionError, ValueError) as error:
        raise ValueError(f'"messages" is not JSON ({error})') from error


def user_turns(query: Query) -> list[int]:
    """Return the indices of the messages that are a user's; the last one is always among them."""
    return [index for index, message in enumerate(query.messages) if message["role"] == "user"]


def _messages_of(row: dict[str, Any]) -> list[Message]:
    if ("text" in row) == ("messages" in row):
        raise ValueError('needs either "text" or "messages"')
    if "text" in row:
        text = row["text"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError('"text" holds no text')
        return [{"role": "user", "content": text}]
    faults = message_faults(row["messages"])
    if faults:
        raise ValueError("; ".join(faults))
    if row["messages"][-1]["role"] != "user":
        raise ValueError("the last message must be a user's")
    return row["messages"]


def _check_metadata(metadata: dict[str, Any]) -> None:
    name = metadata.get(USER_ID)
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int, float)) or name == ""):
        raise ValueError('"id" must be a text or a number')
    try:
        canonical_json(metadata).encode()
    except UnicodeEncodeError as error:
        raise ValueError(_HALF.format("metadata")) from error
    except RecursionError as error:
        raise ValueError("the metadata is nested too deeply") from error
