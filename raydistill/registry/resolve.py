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
    """Move an alias back to what it named before its last move; a move like any other, kept in the history.

    A version that was promoted once needs no `force` now.

    Args:
        uri: the model's registry folder.
        alias: like `final`.
        to: a version that the alias named at some time; None: the one before the last move. So a second rollback
            without `to` takes back the first.

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
    label = to or moves[-1]["from"]
    if label is None:
        raise NotFoundError(f"{uri}: {alias} has named {seen.mapping[alias]} only: there is nothing to go back to.")
    if label not in named:
        raise NotFoundError(
            f"{uri}: {alias} never named {label}, only {', '.join(named)}. To move it on, use promote instead."
        )
    return move_alias(uri, alias, label, seen)
