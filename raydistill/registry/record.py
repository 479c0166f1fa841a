"""`version.json` read strictly: every field of its type and within bounds, or it is no version."""

import functools
import math
import re
from typing import Any

from raydistill.core.errors import VerificationError
from raydistill.core.records import MIN_PROBE_SHIFT_NATS, Version, version_from_json
from raydistill.core.uris import NAME
from raydistill.registry.files import MAX_FILE_BYTES
from raydistill.registry.probe import probe_shift

MAX_RECORD_BYTES = 16 * 2**20  # 64 probe points of 4096 tokens are 2 MB
MAX_POINTS = 64  # published are 16: each is a request to every replica at every load
MAX_PREFIX_TOKENS = 4096
ROUNDING = 0.01  # by so much the log-probability of a sure token may lie above 0
_SHA256 = re.compile(r"[0-9a-f]{64}")


@functools.cache
def _types() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Version)


def parse_version(text: bytes, place: str) -> Version:
    """Return the Version that a `version.json` holds.

    Args:
        text: the file's content.
        place: where it is from, for the message.

    Raises:
        VerificationError: with the first fault found.
    """
    try:
        version = version_from_json(text)
        _types().validate_json(text, strict=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).replace("\n", " ")[:300]
        raise VerificationError(f"{place} is no version ({reason}). Publish the adapter again.") from error
    fault = _find_fault(version)
    if fault:
        raise VerificationError(f"{place} is no version: {fault}. Publish the adapter again.")
    return version


def _find_fault(version: Version) -> str | None:
    """Return what is out of bounds, None where nothing is."""
    if not NAME.fullmatch(version.name):
        return f"{version.name!r} is no model's name"
    if version.number < 1:
        return f"its number is {version.number}"
    return _find_lora_fault(version.lora) or _find_file_fault(version) or _find_probe_fault(version)


def _find_lora_fault(lora: dict[str, Any]) -> str | None:
    for key in ("rank", "modules"):
        if type(lora.get(key)) is not int or lora[key] < 1:
            return f"lora.{key} is {lora.get(key)!r}; it must be a whole number from 1"
    alpha = lora.get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        return f"lora.alpha is {alpha!r}; it must be a number above 0"
    return None


def _find_file_fault(version: Version) -> str | None:
    for entry in version.files:
        if not 0 <= entry.bytes <= MAX_FILE_BYTES:
            return f"{entry.name!r} is declared to have {entry.bytes} bytes; at most {MAX_FILE_BYTES} are fetched"
        if not _SHA256.fullmatch(entry.sha256):
            return f"{entry.sha256!r} is no SHA-256"
    return None


def _find_probe_fault(version: Version) -> str | None:
    if len(version.probe) > MAX_POINTS:
        return f"its probe has {len(version.probe)} points; at most {MAX_POINTS} are asked"
    for index, point in enumerate(version.probe):
        if not 1 <= len(point.prefix) <= MAX_PREFIX_TOKENS or min(*point.prefix, point.token, 0) < 0:
            return f"the prefix or token of probe point {index} is none"
        if not (-math.inf < point.base <= ROUNDING and -math.inf < point.adapter <= ROUNDING):
            return f"probe point {index} holds {point.base} and {point.adapter}, which are no log-probabilities"
    if version.verifiable and probe_shift(version.probe) < MIN_PROBE_SHIFT_NATS:
        return f"it says verifiable, but its probe moves by {probe_shift(version.probe):.2f} nat only"
    return None
