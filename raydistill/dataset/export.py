"""From Examples to one `.jsonl` file that any other tool can read."""

import json

from raydistill.core import storage
from raydistill.core.records import Example


def to_jsonl(examples: list[Example]) -> bytes:
    """Return one line an example: `{"messages": [..., {"role": "assistant", "content": response}]}`."""
    lines = [
        json.dumps(
            {"messages": [*example.messages, {"role": "assistant", "content": example.response}]}, ensure_ascii=False
        )
        for example in examples
    ]
    return "".join(line + "\n" for line in lines).encode()


def export_jsonl(examples: list[Example], uri: str) -> None:
    """Write the examples to `uri` by one atomic write."""
    storage.write_bytes(uri, to_jsonl(examples))
