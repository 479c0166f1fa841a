"""Delete a version that no alias points to."""

from raydistill.core import storage
from raydistill.core.errors import ConfigError, ConflictError, NotFoundError
from raydistill.core.uris import join
from raydistill.registry.aliases import Aliases, Move, append_move, make_move
from raydistill.registry.files import ADAPTER_FILES
from raydistill.registry.merged import delete_merged
from raydistill.registry.publish import CLAIM_FILE
from raydistill.registry.versions import LABEL, VERSION_FILE, known_versions


def delete_version(uri: str, label: str) -> None:
    """Delete a version; its number is never used again.

    The deletion is an entry of the aliases' history: of it and a promotion at once only one can win. Then
    `version.json` goes first of its files, so that nobody reads half a version. Where it was interrupted, the same
    call ends it.

    Args:
        uri: the model's registry folder.
        label: like `v0001`.

    Raises:
        NotFoundError: there is no such version.
        ConflictError: an alias points to it, or other writers won every attempt.
        StorageError: the store ignores conditional writes, or refuses.
    """

    def decide(current: Aliases) -> Move | None:
        pointing = sorted(alias for alias, target in current.mapping.items() if target == label)
        if pointing:
            raise ConflictError(
                f"{uri}: {label} is what {', '.join(pointing)} points to, so it is not deleted. Move the alias first: "
                f"raydistill promote {uri} LABEL --alias {pointing[0]}"
            )
        if label in current.deleted:
            return None
        if not storage.exists(join(uri, label, VERSION_FILE)):
            raise NotFoundError(f"{uri} holds no version {label!r}; {known_versions(uri)}")
        return make_move(None, label, None)

    if not LABEL.fullmatch(label):
        raise ConfigError(f"{label!r} is no version: write it like v0001.")
    append_move(uri, decide, f"{label} could not be deleted")
    storage.write_bytes(join(uri, label, CLAIM_FILE), b"")  # keeps the number taken
    for name in (VERSION_FILE, *ADAPTER_FILES):
        storage.delete(join(uri, label, name))
    delete_merged(uri, label)
