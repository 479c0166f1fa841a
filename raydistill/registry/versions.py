"""Read the versions that a model's registry folder holds, by their number."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from raydistill.core import storage
from raydistill.core.errors import NotFoundError, VerificationError
from raydistill.core.records import Version
from raydistill.core.uris import join
from raydistill.registry.record import MAX_RECORD_BYTES, parse_version

VERSION_FILE = "version.json"
LABEL = re.compile(r"v\d{4,}")


def list_labels(uri: str) -> list[str]:
    """Return every number that was ever claimed below a model's folder, published or not, lowest first."""
    labels = [name for name in storage.list_names(uri) if LABEL.fullmatch(name)]
    return sorted(labels, key=lambda label: int(label[1:]))


def list_versions(uri: str) -> list[Version]:
    """Return the published versions, lowest number first; a claimed number without `version.json` is none."""
    return [_parse(uri, label) for label in list_labels(uri) if storage.exists(join(uri, label, VERSION_FILE))]


def inspect_versions(uri: str) -> Iterator[tuple[str, Version | VerificationError | None]]:
    """Yield every number that was claimed with its version, with what is wrong with it, or with None.

    None: it was never finished, is being published just now, or was deleted.
    """
    for label in list_labels(uri):
        try:
            yield label, _parse(uri, label)
        except NotFoundError:
            yield label, None
        except VerificationError as error:
            yield label, error


def read_version(uri: str, label: str) -> Version:
    """Return one published version.

    Args:
        uri: the model's registry folder.
        label: like `v0001`.

    Raises:
        NotFoundError: there is no such version; the message names the known ones.
        VerificationError: `version.json` is not one, or is of another number.
    """
    try:
        return _parse(uri, label)
    except NotFoundError as error:
        raise NotFoundError(f"{uri} holds no version {label!r}; {known_versions(uri)}") from error


def known_versions(uri: str) -> str:
    """Return one sentence that names the versions of a model's folder, for an error message."""
    versions = [label for label in list_labels(uri) if storage.exists(join(uri, label, VERSION_FILE))]
    if not versions:
        return f"nothing is published there. Train first: python -m jobs.train ... output_dir={uri}"
    return f"known versions: {', '.join(versions)}."


def _parse(uri: str, label: str) -> Version:
    place = join(uri, label, VERSION_FILE)
    version = parse_version(storage.read_bytes(place, MAX_RECORD_BYTES), place)
    if (version.name, version.label) != (folder_name(uri), label):
        raise VerificationError(
            f"{place} says it is {version.name}/{version.label}. Version folders may not be copied or renamed."
        )
    return version


def folder_name(uri: str) -> str:
    """Return the last component of a registry folder: the model's name."""
    return PurePosixPath(uri.rstrip("/")).name
