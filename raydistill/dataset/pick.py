"""Which rows of a ledger make up a dataset: of what was answered twice one answer, the first that did not fail."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raydistill.core.errors import DatasetError
from raydistill.core.idset import contains
from raydistill.core.records import Shard
from raydistill.dataset.layout import read_table
from raydistill.dataset.ledger import find_starts, read_runs


@dataclass(frozen=True)
class _Runs:
    """The runs of a ledger, one element each: the answers to one (query, sample), one after the other in one object."""

    ids: np.ndarray
    failed: np.ndarray
    shard: np.ndarray  # index of the object
    run: np.ndarray  # index within the object


def pick_rows(folder: str, shards: Sequence[Shard], asked: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows of the (query, sample)s that were asked, once each, object by object.

    Args:
        folder: the dataset's.
        shards: the ledger's objects.
        asked: sorted packed ids.

    Raises:
        DatasetError: the ledger lacks some of them.
    """
    runs = _read_all(folder, shards)
    chosen = _choose(runs, asked)
    if len(chosen) < len(asked):
        raise DatasetError(
            f"{folder}: {len(asked) - len(chosen)} of {len(asked)} answers are not there. Run the same command again."
        )
    for index, shard in enumerate(shards):
        wanted = runs.run[chosen[runs.shard[chosen] == index]]
        if len(wanted):
            table = read_table(folder, shard)
            starts = find_starts(table)
            is_wanted = np.zeros(len(starts), dtype=bool)
            is_wanted[wanted] = True
            lengths = np.diff(np.append(starts, table.num_rows))
            yield table.filter(pa.array(np.repeat(is_wanted, lengths)))


def _read_all(folder: str, shards: Sequence[Shard]) -> _Runs:
    found = read_runs(folder, shards)
    sizes = [len(ids) for ids, _ in found]
    return _Runs(
        ids=np.concatenate([ids for ids, _ in found]),
        failed=np.concatenate([failed for _, failed in found]),
        shard=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        run=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
    )


def _choose(runs: _Runs, asked: np.ndarray) -> np.ndarray:
    """Return the indices of the runs to use: for each id the first that did not fail, else the last."""
    positions = np.arange(len(runs.ids))
    order = np.lexsort((np.where(runs.failed, -positions, positions), runs.failed, runs.ids))
    ids = runs.ids[order]
    is_first = np.ones(len(ids), dtype=bool)
    is_first[1:] = ids[1:] != ids[:-1]
    return order[is_first & contains(asked, ids)]
