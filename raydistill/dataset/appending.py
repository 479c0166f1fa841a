"""The driver's side of a ledger that is being written: commits are named in the manifest, small objects joined."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import ray

from raydistill.core.answers import Commit
from raydistill.core.records import Manifest, Shard
from raydistill.dataset.ledger import choose_compaction, compact, delete_shards, replace_shards
from raydistill.dataset.spending import Part, add_tokens, spend
from raydistill.dataset.write import open_dataset, put_manifest


class OpenLedger:
    """Names what asking actors committed in the manifest, and has it compacted by a Ray task, one at a time."""

    def __init__(self, folder: str, draft: Manifest, part: Part = "answers") -> None:
        """Say in the folder's manifest what is being asked (finished: false).

        Args:
            folder: the dataset's.
            draft: what is asked, and what is there of it.
            part: what the tokens of its commits are spent on.

        Raises:
            ConflictError: another create_data is writing to this dataset.
        """
        self.folder = folder
        self.manifest = draft
        self._part: Part = part
        self._etag = open_dataset(folder, draft)
        self._joining: tuple[list[Shard], Any] | None = None  # what is being joined, and the task's future

    def add(self, commits: Sequence[Commit]) -> None:
        """Name commits in the manifest."""
        counts, dropped = self.manifest.counts, Counter(self.manifest.counts["dropped"])
        for commit in commits:
            dropped.update(commit.dropped)
        added = [commit.tokens for commit in commits]
        counts = {
            **counts,
            "answered": counts["answered"] + sum(commit.pairs for commit in commits),
            "kept": counts["kept"] + sum(commit.kept for commit in commits),
            "dropped": dict(dropped),
        }
        answers = [*self.manifest.answers, *(commit.shard for commit in commits)]
        tokens = add_tokens(self.manifest.tokens, *added)
        manifest = dataclasses.replace(self.manifest, counts=counts, tokens=tokens, answers=answers)
        self._put(spend(manifest, self._part, *added))

    def spend(self, part: Part, tokens: Mapping[str, int]) -> None:
        """Note that tokens were spent on something that is no commit of this ledger."""
        self._put(spend(self.manifest, part, tokens))

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
