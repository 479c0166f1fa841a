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
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


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
        VerificationError: the file is not one, or an entry lies outside it.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise VerificationError(f"{path} is no safetensors file (its header would be {length} bytes long).")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= size_bytes - 8 - length or not all(axis >= 0 for axis in entry["shape"]):
                raise VerificationError(f"{path}: tensor {name} lies outside the file: it was cut.")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, VerificationError):
            raise
        raise VerificationError(f"{path} is no safetensors file ({error}).") from error
    return header


def read_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float array of the tensor's shape) one by one; bfloat16 is widened to float32.

    Raises:
        VerificationError: a tensor is not of a floating type, or its bytes do not fill its shape.
    """
    header = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise VerificationError(f"{path}: tensor {name} is {entry['dtype']}; allowed are {', '.join(_DTYPES)}.")
        begin, end = entry["data_offsets"]
        if end - begin != int(np.prod(entry["shape"])) * np.dtype(dtype).itemsize:
            raise VerificationError(f"{path}: tensor {name} has {end - begin} bytes, too many or few for its shape.")
        values = np.frombuffer(data[start + begin : start + end].tobytes(), dtype=dtype)
        if entry["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        yield name, values.reshape(entry["shape"])
