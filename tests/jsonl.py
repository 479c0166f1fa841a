"""Files of JSON lines."""

import json
from pathlib import Path


def write_jsonl(path: Path, *lines: object) -> Path:
    """Write each line as JSON, a text as it is, and return the path."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path
