"""Waiting for a store that is away for a while: work that took hours is not given up for a minute's outage."""

import logging
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raydistill.core import storage
from raydistill.core.errors import ConflictError, UnavailableError

PATIENCE_SECONDS = 180.0
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
DELETE_THREADS = 8

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def patiently(do: Callable[[], Result], patience_seconds: float = PATIENCE_SECONDS) -> Result:
    """Return what `do` returns; where a store is away, try again until it is back or patience ends.

    Args:
        do: may be done again when it was cut off: reads, and writes of a whole object.
        patience_seconds: from the first failure on.

    Raises:
        UnavailableError: the last failure.
    """
    start, wait_seconds = None, FIRST_WAIT_SECONDS
    while True:
        try:
            return do()
        except UnavailableError as error:
            start = start or time.monotonic()
            if time.monotonic() - start > patience_seconds:
                raise
            logger.warning("%s Trying again.", error)
        time.sleep(wait_seconds * random.uniform(0.5, 1.0))
        wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)


def list_patiently(uri: str) -> list[str]:
    """Return the names directly below a folder; see `storage.list_names`."""
    return patiently(lambda: storage.list_names(uri))


def delete_patiently(uris: Iterable[str]) -> None:
    """Delete objects, several at a time; absent ones are no error."""
    with ThreadPoolExecutor(DELETE_THREADS) as threads:
        list(threads.map(lambda uri: patiently(lambda: storage.delete(uri)), uris))


def replace_patiently(uri: str, data: bytes, if_match: str) -> str:
    """Write an object if it still has an etag, and return its new one; see `storage.write_bytes`.

    Where only the answer to our own write was lost, the repeated one finds that the condition holds no more, and the
    object as it is to be.

    Raises:
        ConflictError: somebody else wrote it.
    """
    try:
        return patiently(lambda: storage.write_bytes(uri, data, if_match=if_match))
    except ConflictError:
        current, etag = patiently(lambda: storage.read(uri))
        if current == data:
            return etag
        raise
