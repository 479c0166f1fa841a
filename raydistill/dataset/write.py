"""The start of a dataset: whether a place may hold it, and the manifest that says what is being asked."""

from raydistill.core import storage
from raydistill.core.errors import ConfigError, ConflictError, NotFoundError
from raydistill.core.patience import patiently, replace_patiently
from raydistill.core.prompts import Prompt
from raydistill.core.records import Manifest, to_json
from raydistill.core.uris import is_remote, join
from raydistill.dataset.layout import MANIFEST
from raydistill.dataset.read import read_manifest_and_etag


def check_output(output_file: str, folder: str, fingerprint: str) -> None:
    """Refuse a place that holds something else; nothing is written.

    Args:
        output_file: what the user named: a folder or a `.jsonl`.
        folder: the dataset's folder, see `layout.folder_of`.
        fingerprint: of what is to be asked.

    Raises:
        ConflictError: the folder holds answers to another P, by another teacher, or with other sampling.
        ConfigError: there is something that create_data did not write.
    """
    try:
        manifest, _ = read_manifest_and_etag(folder)
    except NotFoundError:
        manifest = None
    if manifest is not None:
        if manifest.fingerprint != fingerprint:
            raise ConflictError(
                f"output_file: {folder} holds a dataset with another fingerprint ({manifest.fingerprint}, not "
                f"{fingerprint}): P, teacher, tokenizer, template or sampling differ, and the two are never mixed. "
                "Choose another output_file, or delete that folder."
            )
        return
    if not is_remote(output_file) and folder == output_file and storage.exists(output_file):
        raise ConfigError(f"output_file: {output_file} is a file. Name a folder, or a file that ends in .jsonl.")
    if folder != output_file and storage.exists(output_file):
        raise ConfigError(f"output_file: {output_file} exists and is not of create_data. Choose another name.")
    names = storage.list_names(folder)
    if names:
        raise ConfigError(
            f"output_file: {folder} holds other files ({', '.join(names[:3])}) and no {MANIFEST}. Choose a new folder."
        )


def open_dataset(folder: str, draft: Manifest) -> str:
    """Say in the folder's manifest what is being asked (finished: false) and return the manifest's etag.

    Raises:
        ConflictError: somebody else wrote a manifest in the meantime.
    """
    try:
        etag = read_manifest_and_etag(folder)[1]
    except NotFoundError:
        etag = storage.ABSENT
    return put_manifest(folder, draft, etag)


def keep_prompt(prompt: Prompt, folder: str) -> None:
    """Write P into a folder under its digest, by which manifests and versions name it."""
    uri, data = join(folder, f"{prompt.digest}.json"), to_json(prompt).encode()
    patiently(lambda: storage.write_bytes(uri, data))


def put_manifest(folder: str, manifest: Manifest, etag: str) -> str:
    """Replace the manifest, if it still is the one with this etag, and return the new etag."""
    try:
        return replace_patiently(join(folder, MANIFEST), to_json(manifest).encode(), etag)
    except ConflictError as error:
        raise ConflictError(
            f"{folder}: another create_data is writing to this dataset. Let it finish, then run this one again."
        ) from error
