"""Whole models with a version's adapter merged in: merged/v0001/ beside v0001/, for servers without LoRA.

`merged.json` is written last and holds the version's content digest and every file's; without it there is none.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import NotFoundError
from raydistill.core.records import Version
from raydistill.core.uris import join

MERGED_FOLDER, MERGED_FILE = "merged", "merged.json"


def merged_uri(uri: str, label: str) -> str:
    """Return where a version's merged model is, or would be.

    Args:
        uri: the model's registry folder.
        label: like `v0001`.
    """
    return join(uri, MERGED_FOLDER, label)


def publish_merged(uri: str, version: Version, folder: Path) -> None:
    """Upload a merged model of a version, its record last."""
    place = merged_uri(uri, version.label)
    files = []
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        files.append({"name": file.name, "bytes": file.stat().st_size, "sha256": sha256})
        storage.upload(file, join(place, file.name))
    record = {"version": version.label, "content_digest": version.content_digest, "files": files}
    storage.write_bytes(join(place, MERGED_FILE), (json.dumps(record, indent=2) + "\n").encode())


def read_merged(uri: str, version: Version) -> dict[str, Any] | None:
    """Return the record of a version's merged model; None where there is no whole one of this very version."""
    try:
        record = json.loads(storage.read_bytes(join(merged_uri(uri, version.label), MERGED_FILE)))
    except NotFoundError:
        return None
    return record if record["content_digest"] == version.content_digest else None


def delete_merged(uri: str, label: str) -> None:
    """Delete a version's merged model, its record first; an absent one is no error."""
    place = merged_uri(uri, label)
    for name in sorted(storage.list_names(place), key=lambda name: name != MERGED_FILE):
        storage.delete(join(place, name))
