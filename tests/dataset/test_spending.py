"""What a dataset has cost: it only grows, whatever becomes of what was asked."""

import dataclasses
import json
from pathlib import Path

import pytest

from raydistill.core.records import Manifest, manifest_from_json, to_json
from raydistill.dataset.finish import finish_dataset
from raydistill.dataset.read import read_manifest
from raydistill.dataset.spending import price_tokens, spend
from raydistill.dataset.write import open_dataset
from tests.dataset.ledger import DRAFT, commit, make_answer, pack

PRICES: dict[str, float | None] = {"input": 1e6, "cached_input": 0.0, "output": 2e6}


def count(completion: int) -> dict[str, int]:
    return {"prompt": 0, "cached": 0, "completion": completion}


def finish(folder: Path, *names: str, prices: dict[str, float | None] | None = None) -> Manifest:
    return finish_dataset(str(folder), pack(*names), dataclasses.replace(DRAFT, prices=prices), str(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger with a failed row, of which 6 tokens are counted, and what a kill left: that row again, and another."""
    folder = tmp_path / "dataset"
    named = commit(folder, "x-0", [make_answer("a"), make_answer("b", error="x", finish_reason="error")])
    draft = spend(dataclasses.replace(DRAFT, answers=[named], spent={"queries": count(7)}), "answers", count(6))
    open_dataset(str(folder), draft)
    commit(folder, "y-0", [make_answer("b"), make_answer("c")])
    return folder


def test_what_was_spent_stays_where_the_dataset_becomes_smaller(folder: Path) -> None:
    all_rows = finish(folder, *"abc")
    assert all_rows.tokens["completion"] == 9, "of b one answer counts"
    assert all_rows.spent == {"queries": count(7), "answers": {"prompt": 20, "cached": 12, "completion": 12}}
    fewer = finish(folder, "c")
    assert (fewer.tokens["completion"], fewer.spent, fewer.cost) == (3, all_rows.spent, None)
    assert finish(folder, "c", prices=PRICES).cost == 20 - 12 + 2 * (7 + 12)
    assert read_manifest(str(folder)).prices == PRICES


def test_what_a_judge_took_is_that_of_its_own_ledger(folder: Path) -> None:
    judged = folder / "judgements"
    open_dataset(str(judged), dataclasses.replace(DRAFT, tokens=count(5)))
    commit(judged, "unnamed", [make_answer("a")])
    for _ in range(2):
        assert finish(folder, "a").spent["judgements"] == {"prompt": 10, "cached": 6, "completion": 5 + 3}


def test_cached_tokens_cost_what_others_do_where_nothing_is_said() -> None:
    tokens = {"prompt": 5, "cached": 3, "completion": 1}
    assert price_tokens(tokens, PRICES) == 2 + 2
    assert price_tokens(tokens, {**PRICES, "cached_input": None}) == 5 + 2


def test_a_manifest_of_before_has_spent_what_its_answers_took() -> None:
    old = json.loads(to_json(dataclasses.replace(DRAFT, tokens=count(5))))
    for key in ("spent", "prices", "cost"):
        del old[key]
    manifest = manifest_from_json(json.dumps(old))
    assert (manifest.spent, manifest.cost) == ({"answers": count(5)}, None)
