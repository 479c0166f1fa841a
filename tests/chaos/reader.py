"""A reader that looks at a dataset every 10 ms while it is being made."""

import contextlib
import threading
from collections.abc import Iterator

from raydistill.core.errors import NotFoundError
from raydistill.dataset.layout import read_table
from raydistill.dataset.read import read_manifest

SECONDS = 0.01


class Reader:
    """What was seen: how often, and everything that should not be."""

    def __init__(self, folder: str) -> None:
        """Take the dataset's folder."""
        self._folder = folder
        self._rows = 0
        self._seen: set[str] = set()
        self.num_looks = 0
        self.faults: list[str] = []

    def look(self) -> None:
        """Read the manifest, and each object that it names for the first time."""
        try:
            manifest = read_manifest(self._folder)
        except NotFoundError:
            if self._rows:
                self.faults.append("the manifest is gone")
            return
        self.num_looks += 1
        rows = sum(shard.rows for shard in manifest.answers)
        if rows < self._rows:
            self.faults.append(f"the manifest shrank from {self._rows} to {rows} rows")
        self._rows = rows
        for shard in [*manifest.answers, *manifest.shards, *manifest.drops]:
            if shard.uri in self._seen:
                continue
            try:
                read_table(self._folder, shard)  # its digest and its rows are those that the manifest says
            except NotFoundError:
                if shard in _named(self._folder):
                    self.faults.append(f"{shard.uri} is named and not there")
                continue
            self._seen.add(shard.uri)


def _named(folder: str) -> list:
    manifest = read_manifest(folder)
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
