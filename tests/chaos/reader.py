"""A reader that looks at a dataset every 10 ms while it is being made."""

import contextlib
import threading
import time
from collections.abc import Iterator

from raydistill.core.errors import NotFoundError
from raydistill.core.records import Manifest, Shard
from raydistill.dataset.layout import read_table
from raydistill.dataset.read import read_manifest

SECONDS = 0.01
LOOKS_PER_SECOND = 5  # at least, from the first manifest on: two busy cores and a store in Python leave so many


class Reader:
    """What was seen: how often, and everything that should not be.

    Attributes:
        num_looks: with a manifest.
        seconds: from the first to the last of them.
        faults: what should not be.
    """

    def __init__(self, folder: str) -> None:
        """Take the dataset's folder."""
        self._folder = folder
        self._answers: list[Shard] = []  # that the last manifest named
        self._rows: dict[str, set[str]] = {}  # the ids of each object's rows
        self._ids: set[str] = set()  # of all answers that a manifest named so far
        self._start = 0.0
        self.num_looks = 0
        self.seconds = 0.0
        self.faults: list[str] = []

    def look(self) -> None:
        """Read the manifest, and each object that it names for the first time."""
        try:
            manifest = read_manifest(self._folder)
        except NotFoundError:
            if self.num_looks:
                self.faults.append("the manifest is gone")
            return
        self._start = self._start or time.monotonic()
        self.num_looks, self.seconds = self.num_looks + 1, time.monotonic() - self._start
        are_there = [self._read(shard) for shard in _named(manifest)]
        if manifest.answers == self._answers:
            return
        before, now = (sum(shard.rows for shard in shards) for shards in (self._answers, manifest.answers))
        if now < before:
            self.faults.append(f"the manifest shrank from {before} to {now} rows")
        self._answers = manifest.answers
        if all(are_there):
            ids = {row for shard in manifest.answers for row in self._rows[shard.uri]}
            if lost := self._ids - ids:
                self.faults.append(f"{len(lost)} of {len(self._ids)} answers are not named any more")
            self._ids |= ids

    def _read(self, shard: Shard) -> bool:
        """Read an object unless it was; False where it is gone, as one that was joined in the meantime may be."""
        if shard.uri in self._rows:
            return True
        try:
            table = read_table(self._folder, shard)  # its digest and its rows are those that the manifest says
        except NotFoundError:
            if shard in _named(read_manifest(self._folder)):
                self.faults.append(f"{shard.uri} is named and not there")
            return False
        self._rows[shard.uri] = set(table["id"].to_pylist())
        return True


def _named(manifest: Manifest) -> list[Shard]:
    return [*manifest.answers, *manifest.shards, *manifest.drops]


@contextlib.contextmanager
def reading(folder: str) -> Iterator[Reader]:
    """Look on while the body runs."""
    reader, ended = Reader(folder), threading.Event()

    def target() -> None:
        while not ended.wait(SECONDS):
            try:
                reader.look()
            except Exception as error:  # noqa: BLE001 - a torn file may show as anything
                reader.faults.append(repr(error))

    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield reader
    finally:
        ended.set()
        thread.join()
