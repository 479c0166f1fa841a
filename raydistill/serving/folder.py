"""A replica's private folder for unpacked adapters; those that dead replicas left behind are removed.

Ray ends replicas without letting them clean up. A lock that ends with its process tells which folders are still used,
also where several containers share a temporary folder and process ids mean nothing.
"""

import contextlib
import fcntl
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

PREFIX = "raydistill-adapters-"
LOCK = ".lock"
GRACE_SECONDS = 60.0  # younger ones may be between being made and being locked


class PrivateFolder:
    """An empty folder that is this process's own until it ends."""

    def __init__(self) -> None:
        """Make it, and remove those whose owners are gone."""
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = (self.path / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for folder in self.path.parent.glob(f"{PREFIX}*"):
            if folder != self.path:
                _remove_abandoned(folder)


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder that nobody holds; one of another user is left alone."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime < GRACE_SECONDS:
            return
        lock = folder / LOCK
        with lock.open("r+") if lock.exists() else contextlib.nullcontext() as file:
            if _is_free(file):
                shutil.rmtree(folder, ignore_errors=True)


def _is_free(file: IO[str] | None) -> bool:
    if file is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
