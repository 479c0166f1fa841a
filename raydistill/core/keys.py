"""The API key of a service: read from the environment, sent in a header, known to a server by its digest alone."""

import hashlib
import hmac
import os
import re

from raydistill.core.errors import ConfigError

VARIABLE = "RAYDISTILL_API_KEY"
_VISIBLE_ASCII = re.compile(r"[!-~]+")  # what every HTTP client can send and no server strips


def read_key() -> str | None:
    """Return RAYDISTILL_API_KEY, None where it is absent or empty; see `check_key`."""
    key = os.environ.get(VARIABLE)
    return check_key(key, VARIABLE) if key else None


def check_key(key: str, where: str) -> str:
    """Return a key that a header can carry, or raise ConfigError, which does not repeat it."""
    if not _VISIBLE_ASCII.fullmatch(key):
        raise ConfigError(
            f"{where}: the key holds a space, a line end or a character that is not ASCII, which no header carries as "
            "it is. Choose another, like tml-7c0ffee5."
        )
    return key


def hash_key(key: str) -> str:
    """Return what a server keeps of a key: enough to compare, and harmless in a log."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_matches(given: bytes, key_hash: str) -> bool:
    """Return whether these bytes are the key, in a time that says nothing about it."""
    return hmac.compare_digest(hashlib.sha256(given).hexdigest(), key_hash)
