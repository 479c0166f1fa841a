"""From what a user types (an alias or a version) to the version meant; and the guarded move of an alias."""

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


def promote(uri: str, alias: str, label: str, force: bool = False) -> Aliases:
    """Move an alias for users (`final`): as `move_alias`, but an unverifiable version needs `force`.

    Raises:
        VerificationError: the version's probe moves too little to prove what is served, and force is False.
    """
    if not read_version(uri, label).verifiable and not force:
        raise VerificationError(
            f"{uri}: {label} is unverifiable: its adapter hardly moves the probe's tokens, so a replica cannot prove "
            f"that it serves it. Train for longer, or promote it with force=True."
        )
    return move_alias(uri, alias, label)
