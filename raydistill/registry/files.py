"""The two files of a version, their digests, and safetensors read with numpy alone (no torch here)."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.core.errors import VerificationError
from raydistill.core.records import FileEntry

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
)  # nothing else is ever uploaded, downloaded or loaded

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}
MAX_FILE_BYTES = 8 * 2**30  # rank 64 on all linear layers of a model of 400B is 3 GiB in float32
MAX_CONFIG_BYTES = 2**20


def describe_file(name: str, data: bytes) -> FileEntry:
    """Return a file's entry in `version.json`."""
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


def check_file(entry: FileEntry, data: bytes, place: str) -> None:
    """Refuse a file whose size or SHA-256 is not the entry's.

    Raises:
        VerificationError: with what differs.
    """
    found = describe_file(entry.name, data)
    if found != entry:
        raise VerificationError(
            f"{place}: {found.bytes} bytes with SHA-256 {found.sha256[:12]}..., but the version was published with "
            f"{entry.bytes} bytes and {entry.sha256[:12]}... The file was changed or cut: publish the adapter again."
        )


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return name -> {dtype, shape, data_offsets} of a safetensors file, without its tensors.

    Raises:
        VerificationError: the file is not one, is cut, or its tensors overlap or do not fill it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # the format's own library looks at every offset
            pass
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=_refuse_doubles)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = error.args[0] if isinstance(error, VerificationError) else error
        raise VerificationError(f"{path} is no whole safetensors file ({reason}).") from error
    header.pop("__metadata__", None)
    return header


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in its header")
    return found


def read_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float array of the tensor's shape) one by one; bfloat16 is widened to float32.

    Raises:
        VerificationError: the file is no whole safetensors file, or a tensor is not of a floating type.
    """
    header = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise VerificationError(f"{path}: tensor {name} is {entry['dtype']}; allowed are {', '.join(_DTYPES)}.")
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[start + begin : start + end].tobytes(), dtype=dtype)
        if entry["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        yield name, values.reshape(entry["shape"])
