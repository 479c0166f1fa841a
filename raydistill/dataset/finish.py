"""The keep pass over a dataset's ledger: examples, drops and the finished manifest. It asks nothing.

It goes through the ledger object by object: of the whole it holds some 40 bytes a row.
"""

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.core.errors import NotFoundError, QualityError
from raydistill.core.idset import ID_DIGITS
from raydistill.core.patience import delete_patiently, list_patiently, patiently
from raydistill.core.records import Manifest, Shard
from raydistill.core.uris import join
from raydistill.dataset.export import JsonlExport
from raydistill.dataset.keep import LEAST, Origin, keep_table
from raydistill.dataset.layout import read_table
from raydistill.dataset.ledger import choose_compaction, clean, compact, count_tokens, find_unnamed, replace_shards
from raydistill.dataset.pick import index_rows, pick_rows
from raydistill.dataset.read import read_manifest_and_etag
from raydistill.dataset.rules import Rules
from raydistill.dataset.shards import ShardWriter
from raydistill.dataset.sieve import JUDGEMENTS, Sieve, Terms, make_sieve
from raydistill.dataset.spending import add_tokens, read_spent, with_spent
from raydistill.dataset.write import put_manifest

logger = logging.getLogger(__name__)


def finish_dataset(
    folder: str, asked: np.ndarray, draft: Manifest, output: str, terms: Terms | None = None
) -> Manifest:
    """Write the examples and drops of the ledger, export a `.jsonl` output, and put the finished manifest last.

    Args:
        folder: the dataset's.
        asked: packed ids (see core.idset) of the (query, sample)s of the dataset; the ledger may hold more.
        draft: the manifest so far.
        output: the folder itself, or the `.jsonl` file that was asked for.
        terms: by default all that are no faults of an answer are kept.

    Raises:
        DatasetError: the ledger lacks rows that were asked; the manifest stays unfinished.
        QualityError: not one answer is usable, or too many were dropped; the manifest names what was kept and what was
            dropped, and stays unfinished.
        ConflictError: another create_data is writing to this dataset.
    """
    terms = terms or Terms()
    manifest, etag = read_manifest_and_etag(folder)
    unnamed = find_unnamed(folder, manifest.answers, Origin.of(draft))
    spent = read_spent(folder, manifest, unnamed)
    shards = _join_all(folder, [*manifest.answers, *(commit.shard for commit in unnamed)])
    if terms.rubric is not None:
        _finish_ledger(join(folder, JUDGEMENTS), Origin.of(draft))
    asked = np.sort(asked)
    with JsonlExport(output) if output != folder else contextlib.nullcontext() as export:
        sieve = make_sieve(folder, draft, terms, lambda: pick_rows(folder, shards, asked))
        sorted_out = _sort_out(folder, pick_rows(folder, shards, asked), sieve, export)
        counts = {**draft.counts, **sorted_out.pop("counts")}
        fault = _find_fault(counts, terms.max_dropped_share)
        manifest = dataclasses.replace(draft, finished=fault is None, counts=counts, answers=shards, **sorted_out)
        manifest = with_spent(manifest, spent)
        if export is not None and fault is None:
            export.publish()
    put_manifest(folder, manifest, etag)
    _delete_old_shards(folder, manifest)
    clean(folder, shards)
    if fault is not None:
        drops = (patiently(lambda shard=shard: read_table(folder, shard)) for shard in manifest.drops)
        raise QualityError(f"{folder}: {fault} {_show_drops(counts['dropped'], drops)}")
    if counts["dropped"]:
        logger.warning("%s: of %d answers, dropped: %s.", folder, counts["asked"], counts["dropped"])
    return manifest


def _join_all(folder: str, shards: list[Shard]) -> list[Shard]:
    """Return a ledger's objects with no small one among them."""
    while joined := choose_compaction(shards, at_end=True):
        shards = replace_shards(shards, joined, compact(folder, joined))
    return shards


def _finish_ledger(place: str, origin: Origin) -> None:
    """Name and join what a judge's ledger has in small objects; there may be none."""
    try:
        manifest, etag = read_manifest_and_etag(place)
    except NotFoundError:
        return
    unnamed = find_unnamed(place, manifest.answers, origin)
    shards = _join_all(place, [*manifest.answers, *(commit.shard for commit in unnamed)])
    tokens = add_tokens(manifest.tokens, *(commit.tokens for commit in unnamed))
    if shards != manifest.answers:
        put_manifest(place, dataclasses.replace(manifest, answers=shards, tokens=tokens), etag)
    clean(place, shards)


def _sort_out(folder: str, tables: Iterator[pa.Table], sieve: Sieve, export: JsonlExport | None) -> dict[str, Any]:
    """Write what is kept and what is dropped; return the manifest's fields that follow from it."""
    examples, drops = ShardWriter(folder, "part-{}.parquet"), ShardWriter(folder, "drops-{}.parquet")
    tokens = Counter({"prompt": 0, "cached": 0, "completion": 0})
    reasons: Counter[str] = Counter()
    for answers in tables:
        tokens.update(count_tokens(answers))
        kept, dropped = sieve.sort_out(answers.sort_by("id"))
        assert answers.num_rows == kept.num_rows + dropped.num_rows, "every row asked is kept or dropped"
        reasons.update(dropped["reason"].to_pylist())
        examples.add(kept)
        drops.add(dropped)
        if export is not None:
            export.add(kept)
    num_rows = examples.rows + drops.rows
    drops.add(sieve.not_asked())
    counts = {"asked": num_rows, "answered": num_rows, "kept": examples.rows, "dropped": dict(reasons)}
    return {"counts": counts, "tokens": dict(tokens), "shards": examples.close(), "drops": drops.close()}


def _find_fault(counts: dict[str, Any], max_dropped_share: float) -> str | None:
    dropped = counts["asked"] - counts["kept"]
    if not counts["kept"]:
        return (
            f"not one of {counts['asked']} answers is usable. Mend that; failed rows are asked again with "
            "retry_failed=true, others in a new output_file."
        )
    if dropped > max_dropped_share * counts["asked"]:
        return (
            f"{dropped} of {counts['asked']} answers were dropped, which is more than max_dropped_share="
            f"{max_dropped_share:g}. What was kept stays; mend the reasons, or raise max_dropped_share, and run the "
            "same command again: it asks nothing twice (failed rows with retry_failed=true)."
        )
    return None


def _show_drops(numbers: Mapping[str, int], tables: Iterable[pa.Table]) -> str:
    """Return the reasons of drops, the most frequent first, each with one detail.

    Args:
        numbers: of answers, by reason.
        tables: of drops, read until there is a detail of each reason; there may be those of queries among them.
    """
    details: dict[str, str] = {}
    for table in tables:
        for reason, detail in zip(table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True):
            details.setdefault(reason, detail)
        if numbers.keys() <= details.keys():
            break
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    return "Dropped:" + "".join(f"\n  {number:>8} {reason}: {details[reason]}" for reason, number in ordered)


def check_first(folder: str, manifest: Manifest, asked: np.ndarray, min_kept: int, rules: Rules = LEAST) -> None:
    """Refuse to go on where too few of the first answers can be used.

    Args:
        folder: the dataset's.
        manifest: names the ledger's objects.
        asked: sorted packed ids of the first (query, sample)s.
        min_kept: so many of them; of a conversation every answer must be good.
        rules: what an answer must be; a judge is not asked yet.

    Raises:
        QualityError: shows what was dropped.
    """
    origin, rules = Origin.of(manifest), dataclasses.replace(rules, threshold=None)
    first = index_rows(folder, manifest.answers).take(asked)  # one without an answer is not kept
    found = [keep_table(answers, origin, rules) for answers in first]
    drops = [drops for _, drops in found]
    num_answers = sum(examples.num_rows + dropped.num_rows for examples, dropped in found)
    good, spoiled = (
        {identifier[:ID_DIGITS] for table in tables for identifier in table["id"].to_pylist()}
        for tables in ([examples for examples, _ in found], drops)
    )
    num_kept = len(good - spoiled)
    if num_kept < min_kept:
        reasons = Counter(reason for table in drops for reason in table["reason"].to_pylist())
        what = "conversations" if num_answers > len(asked) else "answers"
        raise QualityError(
            f"{folder}: of the first {len(asked)} {what} {num_kept} can be used, smoke_min_kept is {min_kept}; nothing "
            "more was asked. Mend the reasons (P, max_tokens, the rules), then run the same command again: what is "
            f"answered is not asked again. {_show_drops(reasons, drops)}"
        )


def _delete_old_shards(folder: str, manifest: Manifest) -> None:
    """Delete the examples and drops of an earlier pass, which the manifest no longer names."""
    named = {shard.uri for shard in (*manifest.shards, *manifest.drops)}
    names = [name for name in list_patiently(folder) if name.startswith(("part-", "drops-"))]
    delete_patiently(join(folder, name) for name in names if name.endswith(".parquet") and name not in named)
