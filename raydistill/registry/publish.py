"""Publish an adapter: claim a number, upload the files, write `version.json` last; nothing is ever replaced."""

import dataclasses

from raydistill.core import storage
from raydistill.core.errors import ConfigError, ConflictError, NotFoundError
from raydistill.core.records import Version, to_json
from raydistill.core.uris import check_name, join
from raydistill.registry.files import ADAPTER_FILES, describe_file
from raydistill.registry.versions import VERSION_FILE, folder_name, list_labels

CLAIM_FILE = ".claim"


def publish(uri: str, draft: Version, adapter_dir: str, attempts: int = 100) -> Version:
    """Publish a PEFT adapter as the model's next version and return it; no alias moves.

    A publisher that dies in the middle leaves a claimed number without `version.json`, which no reader sees;
    publishing again takes the next number.

    Args:
        uri: the model's registry folder, ROOT/models/NAME.
        draft: the version as it is to be, number 0 and no files; its name is the folder's.
        adapter_dir: folder or URI with `adapter_config.json` and `adapter_model.safetensors`; other files stay there.
        attempts: how many numbers to try against other publishers.

    Raises:
        ConfigError: the draft's name is not the folder's.
        NotFoundError: one of the two files is missing.
        ConflictError: other publishers won every attempt.
    """
    if check_name(draft.name) != folder_name(uri):
        raise ConfigError(
            f"{uri} is the folder of {folder_name(uri)!r}, not of {draft.name!r}: publish to .../{draft.name}."
        )
    contents = {name: _read_part(adapter_dir, name) for name in ADAPTER_FILES}
    number = _claim_number(uri, attempts)
    version = dataclasses.replace(
        draft,
        number=number,
        files=[describe_file(name, data) for name, data in contents.items()],
    )
    for name, data in contents.items():
        storage.write_bytes(join(uri, version.label, name), data, if_match=storage.ABSENT)
    storage.write_bytes(
        join(uri, version.label, VERSION_FILE),
        to_json(version).encode(),
        if_match=storage.ABSENT,
    )
    return version


def _read_part(adapter_dir: str, name: str) -> bytes:
    try:
        return storage.read_bytes(join(adapter_dir, name))
    except NotFoundError as error:
        raise NotFoundError(
            f"{adapter_dir} holds no {name}: an adapter is published from a folder in PEFT's format with "
            f"{' and '.join(ADAPTER_FILES)}."
        ) from error


def _claim_number(uri: str, attempts: int) -> int:
    """Take the next free number by a conditional create, so that two publishers never share one."""
    number = max((int(label[1:]) for label in list_labels(uri)), default=0)
    for _ in range(attempts):
        number += 1
        try:
            storage.write_bytes(join(uri, f"v{number:04d}", CLAIM_FILE), b"", if_match=storage.ABSENT)
        except ConflictError:
            continue
        return number
    raise ConflictError(
        f"{uri}: no free version number after {attempts} attempts: other publishers are faster. Try again."
    )
