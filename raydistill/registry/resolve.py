"""From an alias or a version to the version meant; the guarded move of an alias, and the way back."""

from raydistill.core.errors import NotFoundError, VerificationError
from raydistill.core.records import Version
from raydistill.registry.aliases import Aliases, move_alias, read_aliases
from raydistill.registry.versions import LABEL, known_versions, read_version


def resolve(uri: str, ref: str) -> Version:
    """Return the version that an alias points to now, or that a label like `v0001` names.

    Raises:
        NotFoundError: neither an alias nor a version; the message names the known ones.
    """
    if LABEL.fullmatch(ref):
        return read_version(uri, ref)
    mapping = read_aliases(uri).mapping
    if ref not in mapping:
        pointers = ", ".join(f"{alias} -> {label}" for alias, label in sorted(mapping.items())) or "none"
        raise NotFoundError(f"{uri} holds no alias {ref!r}; known aliases: {pointers}; {known_versions(uri)}")
    return read_version(uri, mapping[ref])


def promote(uri: str, alias: str, label: str, force: bool = False, seen: Aliases | None = None) -> Aliases:
    """Move an alias for users (`final`): as `move_alias`, but an unverifiable version needs `force`.

    Raises:
        VerificationError: the version's probe moves too little to prove what is served, and force is False.
    """
    if not read_version(uri, label).verifiable and not force:
        raise VerificationError(
            f"{uri}: {label} is unverifiable: its adapter hardly moves the probe's tokens, so a replica cannot prove "
            f"that it serves it. Train for longer, or promote it with force=True (--force)."
        )
    return move_alias(uri, alias, label, seen)


def rollback(uri: str, alias: str, to: str | None = None) -> Aliases:
    """Take back an alias's last move; a move like any other, kept in the history.

    Each further rollback goes one promotion further back, as an undo does; what was promoted and taken back is not
    come by again. A version that was promoted once needs no `force` now.

    Args:
        uri: the model's registry folder.
        alias: like `final`.
        to: a version that the alias named at some time; None: the one before its last move that still stands.

    Raises:
        NotFoundError: the alias never named another version (or not that one), or it is not published any more.
        ConflictError: somebody else moved the alias meanwhile.
    """
    seen = read_aliases(uri)
    moves = seen.moves(alias)
    if not moves:
        known = ", ".join(sorted(seen.mapping)) or "none"
        raise NotFoundError(f"{uri} holds no alias {alias!r}; known aliases: {known}.")
    named = sorted({label for move in moves for label in (move["from"], move["to"]) if label is not None})
    if to is not None and to not in named:
        raise NotFoundError(
            f"{uri}: {alias} never named {to}, only {', '.join(named)}. To move it on, use promote instead."
        )
    standing = seen.standing_moves(alias)
    undone = next((move for move in reversed(standing) if to in (None, move["from"])), None)
    label = to or (undone["from"] if undone else None)
    if label is None:
        raise NotFoundError(_describe_bottom(uri, alias, seen.mapping[alias], named))
    return move_alias(uri, alias, label, seen, undoes=undone.get("id") if undone else None)


def _describe_bottom(uri: str, alias: str, label: str, named: list[str]) -> str:
    if named == [label]:
        return f"{uri}: {alias} has named {label} only: there is nothing to go back to."
    return (
        f"{uri}: {alias} is back at {label}, the first version that it named: there is nothing further back. It has "
        f"named {', '.join(named)}: promote one of them, or name it with --to."
    )
