"""A model's name becomes a local folder; a folder becomes a revision that tells two models apart."""

import difflib
import hashlib
import json
import os
import re
import shutil
import struct
import uuid
from pathlib import Path
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import ConfigError, NotFoundError, StorageError
from raydistill.core.records import digest
from raydistill.core.uris import is_remote, join

DEMO_SCHEME = "demo://"
DEMO_MODELS = ("smollm2-135m-instruct",)
CONFIG_NAME = "config.json"

_TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
_SMALL_PATTERNS = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
_WEIGHT_PATTERNS = ["*.safetensors"]  # never *.bin or *.pt: loading those runs code
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_SAMPLE_BYTES = 4096
_NUM_SAMPLES = 16


def cache_dir() -> Path:
    """Return the folder for downloaded models: `RAYDISTILL_CACHE`, or `~/.cache/raydistill`."""
    return Path(os.environ.get("RAYDISTILL_CACHE") or "~/.cache/raydistill").expanduser().absolute()


def resolve_model(model: str, weights: bool = True) -> str:
    """Return the absolute local folder of a model, downloaded where it has to be.

    Args:
        model: a folder with config.json, `demo://NAME` (made by `make setup`), `s3://bucket/folder` or a hub id.
        weights: False fetches configuration and tokenizer only.

    Raises:
        NotFoundError: there is no such model, or it cannot be reached.
        StorageError: the object store did not answer.
    """
    if model.startswith(DEMO_SCHEME):
        return str(_demo_folder(model))
    if is_remote(model):
        return str(_from_storage(model.rstrip("/"), weights))
    if "://" in model:
        raise NotFoundError(
            f"model: {model}: this kind of place is not known. Use a folder, s3://, demo:// or a hub id."
        )
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_NAME).is_file():
            raise NotFoundError(f"model: {model} is a folder without {CONFIG_NAME}. Give the folder that holds it.")
        return str(folder.absolute())
    return _from_hub(model, weights)


def fetch_model_config(model: str) -> dict[str, Any]:
    """Return a model's config.json without fetching anything else; see `resolve_model`."""
    if is_remote(model):
        return _parse_config(storage.read_bytes(join(model, CONFIG_NAME)), f"{model}/{CONFIG_NAME}")
    if "://" in model or Path(model).expanduser().is_dir():
        return read_model_config(resolve_model(model))
    return read_model_config(_from_hub(model, weights=False, patterns=[CONFIG_NAME]))


def read_model_config(model_dir: str) -> dict[str, Any]:
    """Return a local model's config.json.

    Raises:
        NotFoundError: the folder has none.
        ConfigError: it is no JSON object.
    """
    path = Path(model_dir) / CONFIG_NAME
    return _parse_config(storage.read_bytes(str(path)), str(path))


def find_key(config: dict[str, Any], key: str) -> Any:
    """Return what a config.json says of a model of text; where it reads images too, that is a level lower."""
    return config.get(key) or (config.get("text_config") or {}).get(key)


def _parse_config(data: bytes, where: str) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"model: {where} is not JSON ({error}). Download the model again.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"model: {where} holds no JSON object. Download the model again.")
    return config


def model_revision(model_dir: str) -> str:
    """Return a digest of a model's folder, in a time that does not grow with the weights.

    It covers config.json, the tokenizer's files, and of each safetensors file the header and some evenly spaced
    bytes of the weights, so that two fine-tunes of one architecture differ.

    Raises:
        NotFoundError: there is no config.json or no safetensors file.
        ConfigError: a safetensors file is cut short or is none.
    """
    folder = Path(model_dir)
    found = {}
    for name in (CONFIG_NAME, *_TOKENIZER_NAMES):
        path = folder / name
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = sorted(folder.glob("*.safetensors"))
    if CONFIG_NAME not in found or not weights:
        missing = "no safetensors file" if CONFIG_NAME in found else f"no {CONFIG_NAME}"
        raise NotFoundError(f"model: {model_dir} holds {missing}, so it is no model that can be used here.")
    for path in weights:
        found[path.name] = _weights_digest(path)
    return digest(found)


def _weights_digest(path: Path) -> str:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise ConfigError(f"model: {path} is no whole safetensors file. Download the model again.")
        state = hashlib.sha256(start + file.read(header_bytes) + str(size_bytes).encode())
        body = size_bytes - 8 - header_bytes
        for sample in range(_NUM_SAMPLES):
            file.seek(8 + header_bytes + body * sample // _NUM_SAMPLES)
            state.update(file.read(_SAMPLE_BYTES))
    return state.hexdigest()


def _demo_folder(model: str) -> Path:
    name = model.removeprefix(DEMO_SCHEME)
    if name not in DEMO_MODELS:
        raise NotFoundError(f"model: {model} is not known; demo models are {', '.join(DEMO_MODELS)}.")
    folder = cache_dir() / "models" / name
    if not (folder / CONFIG_NAME).is_file():
        raise NotFoundError(f"model: {model} is not on this machine (looked in {folder}). Run `make setup` first.")
    return folder


def _from_storage(uri: str, weights: bool) -> Path:
    """Return the cached copy of a folder in object storage; another listing (names, etags) is another copy."""
    etags = storage.list_etags(uri)
    patterns = _SMALL_PATTERNS + (_WEIGHT_PATTERNS if weights else [])
    wanted = {name: etag for name, etag in etags.items() if any(Path(name).match(pattern) for pattern in patterns)}
    if CONFIG_NAME not in wanted:
        known = f"it holds {', '.join(sorted(etags)[:8])}" if etags else "nothing is there"
        raise NotFoundError(f"model: {uri} has no {CONFIG_NAME} ({known}). Give the folder that holds it.")
    folder = cache_dir() / "models" / f"s3-{digest({'uri': uri, 'etags': wanted})}"
    if folder.is_dir():
        return folder
    private = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    private.mkdir(parents=True)
    try:
        for name in wanted:
            _download(join(uri, name), private / name)
        if {name: storage.list_etags(uri).get(name) for name in wanted} != wanted:
            raise StorageError(f"model: {uri} was changed while it was copied. Start again when it is whole.")
        try:
            private.replace(folder)
        except OSError:
            if not folder.is_dir():  # somebody else brought the same copy first
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return folder


def _download(uri: str, target: Path) -> None:
    """Copy an object in pieces: a file of weights does not fit in memory."""
    try:
        files, path = storage.filesystem(uri)
        with files.open_input_stream(path) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 16 * 1024 * 1024)
    except OSError as error:
        raise StorageError(f"model: {uri} cannot be copied to {target.parent.parent}: {error}.") from error


def _from_hub(model: str, weights: bool, patterns: list[str] | None = None) -> str:
    hint = _nearest_hint(model)
    if not _HUB_ID.fullmatch(model):
        raise NotFoundError(f"model: {model} is no folder here and no hub id (OWNER/NAME).{hint}")
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    allowed = patterns or _SMALL_PATTERNS + (_WEIGHT_PATTERNS if weights else [])
    try:
        return str(Path(snapshot_download(model, allow_patterns=allowed)).absolute())
    except GatedRepoError as error:
        raise NotFoundError(
            f"model: {model} is gated on the hub. Accept its terms there and set HF_TOKEN.{hint}"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(f"model: {model} is no folder here and the hub does not know it.{hint}") from error
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise NotFoundError(
            f"model: {model} is no folder here, is not in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__}). Check the name, the connection, or give a folder.{hint}"
        ) from error


def _nearest_hint(model: str) -> str:
    """Return a sentence that names the nearest folder beside the one asked for, or demo model."""
    path = Path(model).expanduser()
    folders = [str(entry) for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    demos = [DEMO_SCHEME + name for name in DEMO_MODELS]
    by_name = {Path(place).name.lower(): place for place in (*folders, *demos)}
    close = difflib.get_close_matches(path.name.lower(), by_name, n=1, cutoff=0.6)
    return f" Did you mean {by_name[close[0]]}?" if close else ""
