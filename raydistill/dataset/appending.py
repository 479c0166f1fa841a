"""The driver's side of a ledger that is being written: commits are named in the manifest, small objects joined."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import ray

from raydistill.core.answers import Commit
from raydistill.core.records import Manifest, Shard
from raydistill.dataset.ledger import choose_compaction, compact, delete_shards, replace_shards
from raydistill.dataset.write import open_dataset, put_manifest


class OpenLedger:
    """Names what asking actors committed in the manifest, and has it compacted by a Ray task, one at a time."""

    def __init__(self, folder: str, draft: Manifest) -> None:
        """Say in the folder's manifest what is being asked (finished: false).

        Args:
            folder: the dataset's.
            draft: what is asked, and what is there of it.

        Raises:
            ConflictError: another create_data is writing to this dataset.
        """
        self.folder = folder
        self.manifest = draft
        self._etag = open_dataset(folder, draft)
        self._joining: tuple[list[Shard], Any] | None = None  # what is being joined, and the task's future

    def add(self, commits: Sequence[Commit]) -> None:
        """Name commits in the manifest."""
        counts, tokens = self.manifest.counts, Counter(self.manifest.tokens)
        dropped = Counter(counts["dropped"])
        for commit in commits:
            dropped.update(commit.dropped)
            tokens.update(commit.tokens)
        counts = {
            **counts,
            "answered": counts["answered"] + sum(commit.pairs for commit in commits),
            "kept": counts["kept"] + sum(commit.kept for commit in commits),
            "dropped": dict(dropped),
        }
        answers = [*self.manifest.answers, *(commit.shard for commit in commits)]
        self._put(dataclasses.replace(self.manifest, counts=counts, tokens=dict(tokens), answers=answers))

    def compact(self, in_work: AbstractSet[str]) -> None:
        """Have small objects joined where there are enough, and name what has been joined.

        Args:
            in_work: request objects whose answers are left alone; see `ledger.choose_compaction`.
        """
        if self._joining is None:
            shards = choose_compaction(self.manifest.answers, in_work=in_work)
            if shards:
                self._joining = shards, ray.remote(num_cpus=0)(compact).remote(self.folder, shards)
            return
        shards, future = self._joining
        if not ray.wait([future], timeout=0)[0]:
            return
        self._joining = None
        answers = replace_shards(self.manifest.answers, shards, ray.get(future))
        self._put(dataclasses.replace(self.manifest, answers=answers))
        delete_shards(self.folder, shards)

    def _put(self, manifest: Manifest) -> None:
        self._etag = put_manifest(self.folder, manifest, self._etag)
        self.manifest = manifest
