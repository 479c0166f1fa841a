"""The keep pass over a dataset's ledger: examples, drops and the finished manifest. It asks nothing."""

import dataclasses
import logging
from collections import Counter

import pyarrow as pa

from raydistill.core import storage
from raydistill.core.answers import answer_from_row
from raydistill.core.errors import DatasetError
from raydistill.core.records import Answer, Drop, Example, Manifest, Shard
from raydistill.core.uris import join
from raydistill.dataset.export import export_jsonl
from raydistill.dataset.keep import Origin, keep
from raydistill.dataset.layout import DROP_SCHEMA, EXAMPLE_SCHEMA, drop_to_row, example_to_row, write_shard
from raydistill.dataset.ledger import best_rows, read_ledger
from raydistill.dataset.read import read_manifest_and_etag
from raydistill.dataset.write import put_manifest

ROWS_PER_SHARD = 10_000

logger = logging.getLogger(__name__)


def finish_dataset(folder: str, asked: list[str], draft: Manifest, output: str) -> Manifest:
    """Write the examples and drops of the ledger, export a `.jsonl` output, and put the finished manifest last.

    Args:
        folder: the dataset's.
        asked: the answer ids that make up the dataset, in its order; the ledger may hold more.
        draft: the manifest so far.
        output: the folder itself, or the `.jsonl` file that was asked for.

    Raises:
        DatasetError: the ledger lacks rows that were asked, or not one answer is usable; the manifest stays unfinished.
        ConflictError: another create_data is writing to this dataset.
    """
    _, etag = read_manifest_and_etag(folder)
    ledger, answers = read_ledger(folder)
    examples, drops, tokens = _sort(_pick(ledger, asked, folder), draft)
    dropped = dict(Counter(drop.reason for drop in drops))
    assert len(asked) == len(examples) + len(drops), "every row asked is kept or dropped"
    if dropped:
        logger.warning("%s: of %d answers, dropped: %s.", folder, len(asked), dropped)
    if not examples:
        detail = drops[0].detail or drops[0].reason
        raise DatasetError(
            f"{folder}: not one of {len(asked)} answers is usable ({dropped}; the first: {detail}). "
            "Mend that; failed rows are asked again with retry_failed=true, others in a new output_file."
        )
    manifest = dataclasses.replace(
        draft,
        finished=True,
        counts={**draft.counts, "asked": len(asked), "answered": len(asked), "kept": len(examples), "dropped": dropped},
        tokens=tokens,
        shards=_write_shards(folder, "part", [example_to_row(example) for example in examples], EXAMPLE_SCHEMA),
        drops=_write_shards(folder, "drops", [drop_to_row(drop) for drop in drops], DROP_SCHEMA),
        answers=answers,
    )
    if output != folder:
        export_jsonl(examples, output)
    put_manifest(folder, manifest, etag)
    _delete_old_shards(folder, manifest)
    return manifest


def _pick(ledger: pa.Table, asked: list[str], folder: str) -> pa.Table:
    """Return one row for each id, in the order asked: ids that the ledger holds twice count once."""
    best = best_rows(ledger)
    missing = sum(identifier not in best for identifier in asked)
    if missing:
        raise DatasetError(f"{folder}: {missing} of {len(asked)} answers are not there. Run the same command again.")
    return ledger.take(pa.array([best[identifier] for identifier in asked], pa.int64()))


def _sort(rows: pa.Table, draft: Manifest) -> tuple[list[Example], list[Drop], dict[str, int]]:
    """Return what is kept, what is dropped, and the sums of tokens."""
    origin = Origin(f"{draft.teacher['model']}@{draft.teacher['revision']}", draft.prompt_digest)
    examples: list[Example] = []
    drops: list[Drop] = []
    tokens = {"prompt": 0, "cached": 0, "completion": 0}
    for batch in rows.to_batches(ROWS_PER_SHARD):
        for row in batch.to_pylist():
            answer = answer_from_row(row)
            _count_tokens(tokens, answer)
            verdict = keep(answer, origin)
            if isinstance(verdict, Example):
                examples.append(verdict)
            else:
                drops.append(verdict)
    return examples, drops, tokens


def _count_tokens(tokens: dict[str, int], answer: Answer) -> None:
    tokens["prompt"] += answer.usage.prompt_tokens
    tokens["cached"] += answer.usage.cached_tokens
    tokens["completion"] += answer.usage.completion_tokens


def _write_shards(folder: str, prefix: str, rows: list[dict], schema: pa.Schema) -> list[Shard]:
    starts = range(0, len(rows), ROWS_PER_SHARD)
    return [write_shard(folder, prefix, rows[start : start + ROWS_PER_SHARD], schema) for start in starts]


def _delete_old_shards(folder: str, manifest: Manifest) -> None:
    """Delete the examples and drops of an earlier pass, which the manifest no longer names."""
    named = {shard.uri for shard in (*manifest.shards, *manifest.drops)}
    for name in storage.list_names(folder):
        if name.startswith(("part-", "drops-")) and name.endswith(".parquet") and name not in named:
            storage.delete(join(folder, name))
