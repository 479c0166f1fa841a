"""Answers of every kind, made without a teacher."""

from typing import Any

from raydistill.core.records import Answer, Usage


def make_answer(**changes: Any) -> Answer:
    """Return a good answer, or one with these changes."""
    values = {
        "id": "a1",
        "query_id": "q1",
        "sample_index": 2,
        "turn": 0,
        "messages": [{"role": "user", "content": "Grüße \u2028 <|im_end|>"}],
        "text": "yes",
        "tokens": [5, 6, 2],
        "finish_reason": "stop",
        "usage": Usage(10, 4, 3),
        "latency_seconds": 0.25,
    }
    return Answer(**{**values, **changes})
