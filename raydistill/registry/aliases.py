"""Aliases (`candidate`, `final`, ...) of one model: moved by compare-and-swap, every move kept.

What decides which of two writers wins is one conditional write. In an object store it is that of `aliases.json`
(If-Match). On a folder it is the exclusive creation of the history's next entry, `aliases/000007.json`, which holds on
mounts that several machines share; `aliases.json` is written after it and may lag behind, so readers go on from there.
"""

import dataclasses
import getpass
import json
import os
import re
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    RaydistillError,
    StorageError,
)
from raydistill.core.preflight import check_conditional_writes
from raydistill.core.records import canonical_json
from raydistill.core.uris import check_name, is_remote, join
from raydistill.registry.versions import LABEL, known_versions, read_version

ALIASES_FILE = "aliases.json"
HISTORY_FOLDER = "aliases"  # on a folder only
ATTEMPTS = 10
_LABEL_LIKE = re.compile(r"v\d+")

Move = dict[str, str | None]


@dataclass(frozen=True)
class Aliases:
    """Where the aliases of a model point, and how they came there.

    Attributes:
        mapping: alias -> label, like {"final": "v0003"}.
        history: every move, oldest first: {"id", "time", "by", "alias", "from", "to"}; "from" is None the first time.
            Where "alias" and "to" are None, the version "from" was deleted. A rollback has "undoes" too: the id of the
            oldest move that it takes back, with all that stood after it.
        etag: of `aliases.json`; storage.ABSENT where there is no such file yet.
    """

    mapping: dict[str, str] = field(default_factory=dict)
    history: list[Move] = field(default_factory=list)
    etag: str = storage.ABSENT

    @property
    def deleted(self) -> frozenset[str | None]:
        """The labels that were deleted: no alias may point to them again."""
        return frozenset(move["from"] for move in self.history if move["alias"] is None)

    def moves(self, alias: str) -> list[Move]:
        """Return the moves of one alias, oldest first."""
        return [move for move in self.history if move["alias"] == alias]

    def standing_moves(self, alias: str) -> list[Move]:
        """Return the moves of one alias that no rollback has taken back, oldest first; rollbacks are none of them."""
        standing: list[Move] = []
        for move in self.moves(alias):
            undone = move.get("undoes")
            ids = [earlier.get("id") for earlier in standing]
            if undone is not None and undone in ids:
                del standing[ids.index(undone) :]
            else:
                standing.append(move)
        return standing

    def targets(self, alias: str) -> list[str]:
        """Return the labels that an alias may mean, the newest first, each once.

        The one that it names, then those that it named before; none that was deleted, or taken back by a rollback.
        """
        named = [self.mapping.get(alias), *(move["to"] for move in reversed(self.standing_moves(alias)))]
        deleted = self.deleted
        return [label for label in dict.fromkeys(named) if label is not None and label not in deleted]


def read_aliases(uri: str) -> Aliases:
    """Return the aliases below a model's registry folder; none yet gives an empty mapping.

    Raises:
        StorageError: a file is not what `move_alias` writes, or the store does not answer.
    """
    found = _parse(join(uri, ALIASES_FILE), _parse_summary) or Aliases()
    while not is_remote(uri):
        move = _parse(next_entry(uri, found), _parse_entry)
        if move is None:
            break
        found = _apply(found, move)
    return found


def move_alias(
    uri: str,
    alias: str,
    label: str,
    seen: Aliases | None = None,
    attempts: int = ATTEMPTS,
    undoes: str | None = None,
) -> Aliases:
    """Point an alias at a published version and return the aliases as written.

    Where the alias points there already, nothing is written. Moves of other aliases in between do no harm.

    Args:
        uri: the model's registry folder.
        alias: like `final`; may not look like a version.
        label: like `v0001`; must be published.
        seen: the aliases as the caller decided by them; None: as they are now.
        attempts: how often to try against writers of other aliases.
        undoes: for a rollback, the id of the oldest move that it takes back.

    Raises:
        NotFoundError: the version is not published.
        ConflictError: somebody else moved the alias since it was seen, or other writers won every attempt.
        StorageError: the store ignores conditional writes.
    """
    if _LABEL_LIKE.fullmatch(check_name(alias)):
        raise ConfigError(f"{alias!r} looks like a version; call the alias something else, like final.")
    read_version(uri, label)

    def decide(current: Aliases) -> Move | None:
        if current.mapping.get(alias) == label:
            return None
        others = current.moves(alias)[num_seen:]
        if others:
            raise ConflictError(_describe_lost_race(uri, label, others[-1]))
        if label in current.deleted:
            raise NotFoundError(f"{uri}: {label} was deleted; {known_versions(uri)}")
        return make_move(alias, current.mapping.get(alias), label) | ({"undoes": undoes} if undoes else {})

    num_seen = len((seen or read_aliases(uri)).moves(alias))
    return append_move(uri, decide, f"alias {alias!r} could not be moved to {label}", attempts)


def append_move(uri: str, decide: Callable[[Aliases], Move | None], failure: str, attempts: int = ATTEMPTS) -> Aliases:
    """Add one move to the history and return the aliases as written.

    Args:
        uri: the model's registry folder.
        decide: the move on top of the newest aliases, None to leave them as they are; called again where another
            writer came first.
        failure: what could not be done, for the message.
        attempts: how often to try against other writers.

    Raises:
        ConflictError: other writers won every attempt.
        StorageError: the store ignores conditional writes.
    """
    check_conditional_writes(uri)
    for _ in range(attempts):
        current = read_aliases(uri)
        move = decide(current)
        if move is None:
            return current
        try:
            return _write(uri, current, move)
        except ConflictError:
            current = read_aliases(uri)
            if move in current.history:  # it was written; only the answer was lost, and the second try refused
                return current
    raise ConflictError(f"{uri}: {failure}: other writers won {attempts} times. Try again.")


def _write(uri: str, current: Aliases, move: Move) -> Aliases:
    new = _apply(current, move)
    summary = (canonical_json({"aliases": new.mapping, "history": new.history}) + "\n").encode()
    place = join(uri, ALIASES_FILE)
    if is_remote(uri):
        return dataclasses.replace(new, etag=storage.write_bytes(place, summary, if_match=current.etag))
    entry = (canonical_json(move) + "\n").encode()
    storage.write_bytes(next_entry(uri, current), entry, if_match=storage.ABSENT)
    with suppress(StorageError):  # the entry has decided; the next move writes the summary too
        return dataclasses.replace(new, etag=storage.write_bytes(place, summary))
    return new


def _apply(aliases: Aliases, move: Move) -> Aliases:
    alias, label = move["alias"], move["to"]
    mapping = aliases.mapping if alias is None or label is None else {**aliases.mapping, alias: label}
    return dataclasses.replace(aliases, mapping=mapping, history=[*aliases.history, move])


def next_entry(uri: str, aliases: Aliases) -> str:
    """Return where, on a folder, the next move will be written: once it is there, these aliases are old."""
    return join(uri, HISTORY_FOLDER, f"{len(aliases.history) + 1:06d}.json")


def make_move(alias: str | None, old: str | None, new: str | None) -> Move:
    """Return an entry of the history, by this process's user, of now; see `Aliases.history`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return {
        "id": uuid.uuid4().hex,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "by": f"{user}@{socket.gethostname()}",
        "alias": alias,
        "from": old,
        "to": new,
    }


def _describe_lost_race(uri: str, label: str, move: Move) -> str:
    moved = f"{move['alias']} was moved from {move['from'] or 'nothing'} to {move['to']}"
    return (
        f"{uri}: {moved} by {move.get('by', '?')} at {move['time']}, while it was about to be moved to {label}. "
        f"Nothing was changed: look at {move['to']}, and promote {label} again if it is still the better one."
    )


def _parse(place: str, read: Callable[[Any, str], Any]) -> Any:
    """Return what a file of the aliases holds, None where there is no such file."""
    try:
        text, etag = storage.read(place)
        return read(json.loads(text), etag)
    except NotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = error.args[0] if isinstance(error, RaydistillError) else repr(error)
        raise StorageError(f"{place} is no list of aliases ({reason}). Put back an older copy of it.") from error


def _parse_summary(data: Any, etag: str) -> Aliases:
    history = [_parse_entry(move) for move in data["history"]]
    for alias, label in data["aliases"].items():
        _check_target(alias, label)
    return Aliases(dict(data["aliases"]), history, etag)


def _parse_entry(data: Any, _etag: str = "") -> Move:
    if data["alias"] is not None:
        _check_target(data["alias"], data["to"])
    elif data["to"] is not None or not LABEL.fullmatch(data["from"]):
        raise ValueError("an entry without an alias that is no deletion")
    return dict(data)


def _check_target(alias: str, label: str) -> None:
    if not LABEL.fullmatch(label):
        raise ValueError(f"{check_name(alias)} points to {label!r}")
    check_name(alias)
