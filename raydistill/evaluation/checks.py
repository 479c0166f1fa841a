"""Is an answer valid by the task's check, and which labels does it give?"""

import json
import re
from typing import Any

from raydistill.evaluation.config import CheckConfig


def is_valid(text: str, finished: bool, check: CheckConfig) -> bool:
    """Return whether an answer satisfies the task's check.

    Args:
        text: the answer without its stop token.
        finished: whether it ended by itself, in one stop token; an answer cut at max_tokens is never valid.
        check: the task's.
    """
    if not finished or not text.strip():
        return False
    if not all(re.search(pattern, text) for pattern in check.must_match):
        return False
    return check.format == "text" or _parse_line(text, check) is not None


def read_labels(text: str, finished: bool, check: CheckConfig) -> tuple[str, ...] | None:
    """Return the values of the task's label fields, in the check's order; None where the answer is not valid."""
    if not check.labels or not is_valid(text, finished, check):
        return None
    fields = _parse_line(text, check)
    return None if fields is None else tuple(fields[label] for label in check.labels)


def _parse_line(text: str, check: CheckConfig) -> dict[str, str] | None:
    """Return the fields of one line of JSON with exactly the check's keys and allowed values, else None."""
    line = text.strip()
    if len(line.splitlines()) != 1:
        return None
    try:
        fields: Any = json.loads(line, object_pairs_hook=_refuse_twins)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or set(fields) != set(check.keys):
        return None
    if not all(isinstance(value, str) and value.strip() for value in fields.values()):
        return None
    if any(fields[key] not in values for key, values in check.allowed.items()):
        return None
    return fields


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
