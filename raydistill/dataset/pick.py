"""Which rows of a ledger make up a dataset: of what was answered twice one answer, the first that did not fail."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raydistill.core.errors import DatasetError
from raydistill.core.idset import find_positions
from raydistill.core.patience import patiently
from raydistill.core.records import Shard
from raydistill.dataset.layout import read_table
from raydistill.dataset.ledger import find_starts, read_runs


@dataclass(frozen=True)
class RowIndex:
    """Where in a ledger the answer to each (query, sample) stands that counts, 25 bytes each.

    Attributes:
        ids: sorted packed ids, each once.
        failed: whether every answer failed.
        shard: int32, the index of the object.
        run: int32, the index of the (query, sample) within the object.
    """

    folder: str
    shards: Sequence[Shard]
    ids: np.ndarray
    failed: np.ndarray
    shard: np.ndarray
    run: np.ndarray

    def take(self, ids: np.ndarray) -> Iterator[pa.Table]:
        """Yield the rows of some (query, sample)s, object by object; those that the ledger lacks are left out."""
        places = find_positions(self.ids, ids)
        places = places[places >= 0]
        for index in np.unique(self.shard[places]).tolist():
            table = patiently(lambda index=index: read_table(self.folder, self.shards[index]))
            starts = find_starts(table)
            is_wanted = np.zeros(len(starts), dtype=bool)
            is_wanted[self.run[places[self.shard[places] == index]]] = True
            lengths = np.diff(np.append(starts, table.num_rows))
            yield table.filter(pa.array(np.repeat(is_wanted, lengths)))


def index_rows(folder: str, shards: Sequence[Shard]) -> RowIndex:
    """Return where each (query, sample) of a ledger stands: the first that did not fail, else the last."""
    found = read_runs(folder, shards)
    if not found:
        found = [(np.zeros(0, dtype="S16"), np.zeros(0, dtype=bool))]
    sizes = [len(ids) for ids, _ in found]
    ids = np.concatenate([ids for ids, _ in found])
    failed = np.concatenate([failed for _, failed in found])
    shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    run = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    positions = np.arange(len(ids))
    order = np.lexsort((np.where(failed, -positions, positions), failed, ids))
    is_first = np.ones(len(ids), dtype=bool)
    is_first[1:] = ids[order[1:]] != ids[order[:-1]]
    chosen = order[is_first]
    return RowIndex(folder, shards, ids[chosen], failed[chosen], shard[chosen], run[chosen])


def pick_rows(folder: str, shards: Sequence[Shard], asked: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows of the (query, sample)s that were asked, once each, object by object.

    Args:
        folder: the dataset's.
        shards: the ledger's objects.
        asked: packed ids.

    Raises:
        DatasetError: the ledger lacks some of them.
    """
    index = index_rows(folder, shards)
    num_missing = int((find_positions(index.ids, asked) < 0).sum())
    if num_missing:
        raise DatasetError(
            f"{folder}: {num_missing} of {len(asked)} answers are not there. Run the same command again."
        )
    yield from index.take(asked)
