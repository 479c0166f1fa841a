"""Takes apart what a teacher wrote when it was asked for queries; what is no query is left out."""

import json
import re
from typing import Any

from raydistill.core.records import Query, digest
from raydistill.queries.plan import ExpansionRequest
from raydistill.queries.split import normalise_text

MIN_ECHO_CHARS = 8  # a shorter text may stand in the request by chance
EXPANDED = ("kind", "origin", "round")  # in the metadata of a query that was written by the teacher

_FENCE = re.compile(r"```\w*\n(.*?)(?:```|\Z)", re.DOTALL)
_LIST_START = re.compile(r"(?:^|:)\s*\[(?=\s*[\"{\[])", re.MULTILINE)
_GAP = frozenset(" \t\r\n,")  # between the elements of a list
_TEXT_KEYS = ("text", "query", "question", "message", "content", "user")
_MARK = re.compile(
    r"\s*(?:\*\*)?(?:[-*+•–](?=\s)|(?:(?:message|query|question|user|q)\s*)?[#(]?\d{1,3}\s*[.):\]、．](?!\d))(?:\*\*)?\s*",  # noqa: RUF001
    re.IGNORECASE,
)
_SPEAKER = re.compile(r"\A(?:user|customer|query|question|message|q)\s*:\s*", re.IGNORECASE)
_QUOTES = ('""', "''", "“”", "„“", "«»", "「」", "``", "‘’")  # noqa: RUF001


def parse_expansion(
    request: ExpansionRequest, text: str, truncated: bool = False, max_query_chars: int = 2000
) -> list[Query]:
    """Return the queries in a teacher's answer: a JSON list or JSON lines, numbered or marked lines, or bare lines.

    Left out are empty ones, longer ones than max_query_chars, and what only repeats a part of the request.

    Args:
        request: what was asked; its kind, origin and round stand in each query's metadata.
        text: the answer.
        truncated: the answer ran into max_tokens, so its last query is not whole.
        max_query_chars: of one query.
    """
    found = _find_items(text)
    if truncated:
        found = found[:-1]
    asked = normalise_text(" ".join(message["content"] for message in request.messages))
    metadata = {"kind": request.kind, "origin": list(request.origin), "round": request.round_index}
    queries = []
    for item in (_clean(item) for item in found):
        is_echo = len(item) >= MIN_ECHO_CHARS and normalise_text(item) in asked
        if not is_echo and len(item) <= max_query_chars and _is_whole_text(item):
            messages = [{"role": "user", "content": item}]
            queries.append(Query(digest(messages), messages, dict(metadata)))
    return queries


def _find_items(text: str) -> list[str]:
    fenced = _FENCE.search(text)
    text = fenced.group(1) if fenced and fenced.group(1).strip() else text
    return _find_json_list(text) or _find_json_lines(text) or _find_lines(text)


def _find_json_list(text: str) -> list[str]:
    """Return the elements of the first JSON list, those before the place where it breaks off or is no JSON."""
    start = _LIST_START.search(text)
    if start is None:
        return []
    decoder, position, items = json.JSONDecoder(), start.end(), []
    while True:
        while text[position : position + 1] in _GAP:
            position += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return items
        items += _texts_of(value)


def _find_json_lines(text: str) -> list[str]:
    items = []
    for line in text.splitlines():
        if line.strip().startswith("{"):
            try:
                items += _texts_of(json.loads(line.strip().rstrip(",")))
            except (ValueError, RecursionError):
                continue
    return items


def _texts_of(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = next((value[key] for key in _TEXT_KEYS if key in value), None)
    return [value] if isinstance(value, str) else []


def _find_lines(text: str) -> list[str]:
    """Return the lines with a number or a mark, or where there are none all lines but those that announce a list."""
    marked: list[str] = []
    bare: list[str] = []
    for line in text.splitlines():
        mark = _MARK.match(line)
        if mark is not None:
            marked.append(line[mark.end() :])
        elif marked and line.startswith(("  ", "\t")) and line.strip():
            marked[-1] += " " + line.strip()
        elif not line.rstrip().endswith((":", "：")):  # noqa: RUF001
            bare.append(line)
    return marked or bare


def _clean(text: str) -> str:
    text = text.strip().removeprefix("**").removesuffix("**").strip()
    text = _SPEAKER.sub("", text, count=1)
    for opening, closing in _QUOTES:
        inner = text.rstrip(",")[1:-1]
        if text.startswith(opening) and text.rstrip(",").endswith(closing) and not {opening, closing} & {*inner}:
            return inner.strip()
    return text.strip()


def _is_whole_text(text: str) -> bool:
    """Return whether a text has a letter or a digit and no half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return any(character.isalnum() for character in text) and "\ufffd" not in text
