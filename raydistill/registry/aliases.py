"""Aliases (`candidate`, `final`, ...) of one model: moved by compare-and-swap, every move kept."""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

from raydistill.core import storage
from raydistill.core.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    StorageError,
)
from raydistill.core.records import canonical_json
from raydistill.core.uris import check_name, join
from raydistill.registry.versions import read_version

ALIASES_FILE = "aliases.json"
_LABEL_LIKE = re.compile(r"v\d+")


@dataclass(frozen=True)
class Aliases:
    """What `aliases.json` holds, and the etag it had when it was read.

    Attributes:
        mapping: alias -> label, like {"final": "v0003"}.
        history: every move, oldest first: {"time", "alias", "from", "to"}; "from" is None the first time.
        etag: for the next compare-and-swap; storage.ABSENT where there is no file yet.
    """

    mapping: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, str | None]] = field(default_factory=list)
    etag: str = storage.ABSENT


def read_aliases(uri: str) -> Aliases:
    """Return the aliases below a model's registry folder; none yet gives an empty mapping.

    Raises:
        StorageError: the file is not what `move_alias` writes, or the store does not answer.
    """
    place = join(uri, ALIASES_FILE)
    try:
        text, etag = storage.read(place)
    except NotFoundError:
        return Aliases()
    try:
        data = json.loads(text)
        mapping, history = dict(data["aliases"]), list(data["history"])
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{place} is no list of aliases ({error}). Put back an older copy of it.") from error
    return Aliases(mapping, history, etag)


def move_alias(uri: str, alias: str, label: str, attempts: int = 10) -> Aliases:
    """Point an alias at a published version and return the aliases as written.

    A move that another one overtook is read and made again on top of it; where the alias points there already,
    nothing is written. Rolling back is a move to the older label.

    Args:
        uri: the model's registry folder.
        alias: like `final`; may not look like a version.
        label: like `v0001`; must be published.
        attempts: how often to try against other writers.

    Raises:
        NotFoundError: the version is not published.
        ConflictError: other writers won every attempt.
    """
    if _LABEL_LIKE.fullmatch(check_name(alias)):
        raise ConfigError(f"{alias!r} looks like a version; call the alias something else, like final.")
    read_version(uri, label)
    for _ in range(attempts):
        current = read_aliases(uri)
        if current.mapping.get(alias) == label:
            return current
        move = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "alias": alias,
            "from": current.mapping.get(alias),
            "to": label,
        }
        mapping, history = {**current.mapping, alias: label}, [*current.history, move]
        text = canonical_json({"aliases": mapping, "history": history}) + "\n"
        try:
            etag = storage.write_bytes(join(uri, ALIASES_FILE), text.encode(), if_match=current.etag)
        except ConflictError:
            continue
        return Aliases(mapping, history, etag)
    raise ConflictError(
        f"{uri}: alias {alias!r} could not be moved to {label}: other writers won {attempts} times. Try again."
    )
