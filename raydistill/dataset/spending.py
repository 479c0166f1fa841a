"""What a dataset has cost: tokens by what they were spent on, and their price. It only grows.

A manifest's `tokens` are those of the answers that make up the dataset; what was asked once and is no part of it any
more (a failed row that was asked again, rows beyond a smaller num_examples) is still paid for.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from raydistill.core.answers import Commit
from raydistill.core.errors import NotFoundError
from raydistill.core.records import Manifest
from raydistill.core.uris import join
from raydistill.dataset.keep import Origin
from raydistill.dataset.ledger import find_unnamed
from raydistill.dataset.read import read_manifest
from raydistill.dataset.sieve import JUDGEMENTS

Part = Literal["queries", "answers", "judgements"]
KINDS = ("prompt", "cached", "completion")


def add_tokens(*counts: Mapping[str, int]) -> dict[str, int]:
    """Return the sums of prompt, cached and completion tokens."""
    return {kind: sum(tokens[kind] for tokens in counts) for kind in KINDS}


def price_tokens(tokens: Mapping[str, int], prices: Mapping[str, float | None]) -> float:
    """Return what tokens cost.

    Args:
        tokens: prompt, cached (which are among the prompt's) and completion.
        prices: of a million: input, cached_input (None: as input) and output.
    """
    price, cached_price, output_price = (prices[key] or 0.0 for key in ("input", "cached_input", "output"))
    if prices["cached_input"] is None:
        cached_price = price
    uncached = tokens["prompt"] - tokens["cached"]
    return (uncached * price + tokens["cached"] * cached_price + tokens["completion"] * output_price) / 1e6


def with_spent(manifest: Manifest, spent: Mapping[str, dict[str, int]]) -> Manifest:
    """Return a manifest that says what was spent, and what that costs by its prices."""
    cost = None if manifest.prices is None else price_tokens(add_tokens(*spent.values()), manifest.prices)
    return dataclasses.replace(manifest, spent=dict(spent), cost=cost)


def spend(manifest: Manifest, part: Part, *counts: Mapping[str, int]) -> Manifest:
    """Return a manifest that says that more tokens were spent on a part."""
    before = [manifest.spent[part]] if part in manifest.spent else []
    return with_spent(manifest, {**manifest.spent, part: add_tokens(*before, *counts)})


def read_spent(folder: str, manifest: Manifest, unnamed: Sequence[Commit] = ()) -> dict[str, dict[str, int]]:
    """Return what was spent on a dataset so far.

    Args:
        folder: the dataset's.
        manifest: what stands there; of the judge its own ledger knows more.
        unnamed: commits of answers that this manifest does not name yet.
    """
    spent = spend(manifest, "answers", *(commit.tokens for commit in unnamed)).spent
    place = join(folder, JUDGEMENTS)
    try:
        judged = read_manifest(place)
    except NotFoundError:
        return spent
    commits = find_unnamed(place, judged.answers, Origin.of(judged))
    return {**spent, "judgements": add_tokens(judged.tokens, *(commit.tokens for commit in commits))}
