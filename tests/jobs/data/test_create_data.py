"""create_data over real Ray Data and Serve, with a hash for a teacher: nothing lost, nothing twice, all counted."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import create_data
from jobs.data_config import PriceConfig
from jobs.data_plan import EXPANDED
from raydistill.core.errors import BudgetError, ConflictError, QualityError
from raydistill.core.records import Manifest
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.queries.read import iter_queries
from raydistill.renderers import get_renderer, load_tokenizer
from tests.jobs.create_data_desk import Desk, contents, num_asked

GOOD = [f"Question {index}" for index in range(30)]
ODD = ["TRUNCATE a", "TRUNCATE b", "EMPTY a", "FAIL a", "LATER a", "long " * 400, "FLAKY a", "CRASH a"]
EVERYTHING = {"num_examples": 38, "max_attempts": 5, "smoke_min_kept": 0}


def sum_completion(manifest: Manifest) -> int:
    return sum(tokens["completion"] for tokens in manifest.spent.values())


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, model_dir: str, teacher: Any) -> Desk:
    """A desk whose dataset was made by a teacher with every fault."""
    made = Desk(tmp_path_factory.mktemp("desk"), model_dir, GOOD + ODD)
    progress: list[Manifest] = []
    create_data.run(made.config(**EVERYTHING), teacher[0], on_progress=progress.append)
    answered = [now.counts["answered"] for now in progress]
    assert answered[-1] == 38
    assert answered == sorted(answered)
    assert sum(progress[-1].counts["dropped"].values()) == 6
    return made


def test_create_data_accounts_for_every_row(desk: Desk) -> None:
    examples, manifest = read_examples(str(desk.output))
    assert manifest is not None
    assert manifest.counts["asked"] == 38 == manifest.counts["kept"] + sum(manifest.counts["dropped"].values())
    assert manifest.counts["dropped"] == {"truncated": 2, "empty": 1, "failed": 2, "too_long": 1}
    drops = [row for shard in manifest.drops for row in pq.read_table(desk.output / shard.uri).to_pylist()]
    assert Counter(row["reason"] for row in drops) == manifest.counts["dropped"]
    assert {row["detail"] for row in drops if row["reason"] == "failed"} == {"asked 5 times: ValueError: refused"}
    assert {example.messages[0]["content"] for example in examples} == {*GOOD, "FLAKY a", "CRASH a"}


def test_create_data_examples_hold_the_teachers_tokens_and_no_p(desk: Desk) -> None:
    examples, manifest = read_examples(str(desk.output))
    assert manifest is not None
    renderer = get_renderer("chat", load_tokenizer(desk.model_dir))
    for example in examples:
        assert example.response_tokens is not None
        message, ended = renderer.parse_response(example.response_tokens)
        assert (message["content"], ended) == (example.response, True)
        assert "Be brief" not in json.dumps(example.messages)
        assert example.prompt_digest == manifest.prompt_digest
    assert not list((desk.output / "requests").glob("*.parquet"))


def test_create_data_again_asks_nothing_and_failed_rows_only_when_told(desk: Desk, teacher: Any) -> None:
    handle, log = teacher
    before, asked = contents(desk.output), num_asked(log)
    manifest = create_data.run(desk.config(**EVERYTHING), handle)
    assert num_asked(log) == asked
    assert contents(desk.output) == before

    retried = create_data.run(desk.config(**EVERYTHING, retry_failed=True), handle)
    assert num_asked(log) == asked + 5 + 1  # FAIL five times, LATER once; what is too long is never sent
    assert sum_completion(retried) > sum_completion(manifest) == manifest.tokens["completion"]
    assert retried.counts["dropped"] == {"truncated": 2, "empty": 1, "failed": 1, "too_long": 1}
    assert retried.fingerprint == manifest.fingerprint


def test_the_plan_is_logged_before_anything_is_asked(
    tmp_path: Path, model_dir: str, teacher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, [f"Plan {index}" for index in range(10)])
    seen: list[tuple[str, int]] = []  # what was logged, and how many rows had been asked then

    def note(record: logging.LogRecord) -> bool:
        seen.append((record.getMessage(), num_asked(log) - before))
        return True

    before = num_asked(log)
    caplog.set_level(logging.INFO, create_data.logger.name)
    create_data.logger.addFilter(note)
    try:
        create_data.run(desk.config(), handle, on_progress=lambda _: None)
    finally:
        create_data.logger.removeFilter(note)
    assert [asked for text, asked in seen if text.startswith("to ask: 10 rows, about ")] == [0]
    assert num_asked(log) == before + 10


def test_progress_is_told_while_nothing_is_committed(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    desk = Desk(tmp_path, model_dir, ["SLOW enough to wait for"])
    answered: list[int] = []
    config = desk.config(num_examples=1, timeout_seconds=4, max_attempts=2, smoke_rows=0)
    create_data.run(config, teacher[0], on_progress=lambda now: answered.append(now.counts["answered"]))
    assert answered.count(0) >= 4, "a teacher that takes its time is told of, too"
    assert answered[-1] == 1


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 1.0}, {"max_tokens": 41}, {"seed": 1}, {"top_p": 0.5}, {"prompt": "p"}],
)
def test_create_data_refuses_another_fingerprint(desk: Desk, teacher: Any, changes: dict[str, Any]) -> None:
    handle, log = teacher
    other = desk.folder / "other.md"
    other.write_text("Be long.")
    if "prompt" in changes:
        changes = {"prompt": str(other)}
    before, asked = contents(desk.folder), num_asked(log)
    with pytest.raises(ConflictError, match="another fingerprint"):
        create_data.run(desk.config(**{**EVERYTHING, **changes}), handle)
    assert contents(desk.folder) == before
    assert num_asked(log) == asked


def test_create_data_grows_by_asking_only_what_is_new(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, [f"Grow {index}" for index in range(20)])
    asked = num_asked(log)
    create_data.run(desk.config(num_examples=10), handle)
    first, _ = read_examples(str(desk.output))
    create_data.run(desk.config(num_examples=30, num_samples=2), handle)
    assert num_asked(log) == asked + 30
    grown, manifest = read_examples(str(desk.output))
    assert {example.id for example in first} < {example.id for example in grown}
    assert len({example.id for example in grown}) == len({example.response for example in grown}) == 30
    assert manifest is not None
    assert {path.name for path in desk.output.glob("part-*")} == {shard.uri for shard in manifest.shards}

    create_data.run(desk.config(num_examples=10), handle)
    assert num_asked(log) == asked + 30
    assert read_examples(str(desk.output))[0] == first


def test_first_rows_that_cannot_be_used_end_the_job_before_the_rest_is_asked(
    tmp_path: Path, model_dir: str, teacher: Any
) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, [f"Smoke TRUNCATE {index}" for index in range(60)])
    config = desk.config(num_examples=60, smoke_rows=6, smoke_min_kept=5)
    asked = num_asked(log)
    with pytest.raises(QualityError, match="of the first 6 answers 0 can be used") as caught:
        create_data.run(config, handle, on_progress=lambda _: None)
    assert "6 truncated: no end after 40 tokens" in str(caught.value)
    assert num_asked(log) == asked + 6
    with pytest.raises(QualityError, match="of the first 6 answers 0"):
        create_data.run(config, handle, on_progress=lambda _: None)
    assert num_asked(log) == asked + 6

    with pytest.raises(QualityError, match="not one of 60 answers is usable"):
        create_data.run(config.model_copy(update={"smoke_min_kept": 0}), handle, on_progress=lambda _: None)
    assert num_asked(log) == asked + 60


def test_asking_stops_at_max_cost_and_goes_on_with_a_larger_one(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, [f"Cost {index}" for index in range(400)])
    prices = {"input": 0, "output": 1e6}  # one for each token of an answer
    config = desk.config(num_examples=400, concurrency=4, num_actors=1, prices=prices, max_cost=100)
    asked = num_asked(log)
    with pytest.raises(BudgetError, match="max_cost is 100"):
        create_data.run(config, handle, on_progress=lambda _: None)
    before = num_asked(log) - asked
    manifest = read_manifest(str(desk.output))
    assert not manifest.finished
    assert manifest.cost == config.cost(manifest.tokens) >= 100
    assert before < 400, "it stopped"
    assert manifest.counts["answered"] == before, "all that was asked was kept"
    for _ in range(2):
        with pytest.raises(BudgetError, match="max_cost is 100"):
            create_data.run(config, handle, on_progress=lambda _: None)
    assert num_asked(log) - asked == before, "the money is spent, so nothing more is asked"

    manifest = create_data.run(config.model_copy(update={"max_cost": 1e9}), handle, on_progress=lambda _: None)
    assert manifest.finished
    assert num_asked(log) == asked + 400
    assert manifest.counts["kept"] == 400
    fewer = create_data.run(config.model_copy(update={"num_examples": 20}), handle)
    assert fewer.cost == manifest.cost == manifest.tokens["completion"] > fewer.tokens["completion"]
    with pytest.raises(BudgetError, match=f"cost {manifest.cost:.4g} so far"):
        create_data.run(config.model_copy(update={"num_samples": 2, "num_examples": 401}), handle)


def test_the_teacher_writes_queries_once_where_there_are_too_few(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, ["Where is my parcel?", "Can I pay later?"])
    expand = {"enabled": True, "max_tokens": 64}
    config = desk.config(num_examples=12, num_samples=2, expand=expand, smoke_min_kept=0)
    manifest = create_data.run(config, handle, on_progress=lambda _: None)
    assert manifest.counts["asked"] == 12
    written = list(iter_queries(str(desk.output / EXPANDED)))
    assert len(written) >= 4
    assert all(query.metadata["kind"] and query.metadata["origin"] for query in written)
    asked = num_asked(log)
    assert create_data.run(config, handle, on_progress=lambda _: None) == manifest
    assert num_asked(log) == asked
    assert manifest.spent["answers"] == manifest.tokens
    assert manifest.spent["queries"]["prompt"] > manifest.spent["queries"]["completion"] > 0

    prices = {"input": 0, "output": 1e6}
    more = config.model_copy(update={"num_examples": 60, "prices": PriceConfig.model_validate(prices), "max_cost": 1.0})
    with pytest.raises(BudgetError, match="max_cost is 1"):
        create_data.run(more, handle)
    assert num_asked(log) == asked
    cost = sum_completion(manifest)
    with pytest.raises(BudgetError, match=f"max_cost is {cost + 1}"):
        create_data.run(more.model_copy(update={"max_cost": float(cost + 1)}), handle)
    on_its_way = read_manifest(str(desk.output))
    assert on_its_way.spent["answers"] == manifest.spent["answers"], "the queries took all there was"
    assert on_its_way.spent["queries"]["completion"] > manifest.spent["queries"]["completion"]


def test_a_judge_grades_once_and_another_threshold_asks_nothing(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, [f"Judge {index}" for index in range(30)])

    def run(max_cost: float | None = None, **judge: Any) -> dict[str, Any]:
        table = {"rubric": "Is it short?", "lowest_score": 0, "highest_score": 9, "sees_prompt": False, **judge}
        prices = {"input": 0, "output": 1e6}
        config = desk.config(num_examples=30, judge=table, max_dropped_share=1.0, prices=prices, max_cost=max_cost)
        return create_data.run(config, handle, on_progress=lambda _: None).counts

    asked = num_asked(log)
    all_kept = run(threshold=0)
    assert num_asked(log) == asked + 60, "each row, and each answer once more by the judge"
    graded = all_kept["kept"]
    assert 0 < graded < 30, "one in ten is no score"
    assert all_kept["dropped"] == {"unjudged": 30 - graded}
    fewer = run(threshold=5)
    assert num_asked(log) == asked + 60
    assert fewer["kept"] + fewer["dropped"].get("low_score", 0) == graded
    before = read_manifest(str(desk.output))
    assert before.spent["judgements"]["completion"] > 0
    assert before.cost == sum_completion(before) > before.tokens["completion"]
    for max_cost in (before.cost, before.cost + 1):
        with pytest.raises(BudgetError, match="max_cost is"):
            run(max_cost, threshold=5, rubric="Is it long?")
    assert asked + 60 < num_asked(log) <= asked + 90, "the second time some were graded"
    run(threshold=5, rubric="Is it long?")
    assert num_asked(log) == asked + 90
    after = read_manifest(str(desk.output))
    assert after.spent["judgements"]["completion"] > before.spent["judgements"]["completion"]
    assert after.cost == sum_completion(after) and after.spent["answers"] == before.spent["answers"]


def test_new_rules_ask_nothing_and_near_queries_are_not_asked(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    handle, log = teacher
    text = "Where is the parcel that I sent to my aunt in Aberdeen on Monday, and who signed for it"
    desk = Desk(tmp_path, model_dir, [f"Rule {index}" for index in range(20)] + [f"{text}?", f"{text} ?!"])
    changes = {"num_examples": 21, "near_duplicates": 0.8, "smoke_min_kept": 0, "max_dropped_share": 1.0}
    asked = num_asked(log)
    manifest = create_data.run(desk.config(**changes), handle, on_progress=lambda _: None)
    assert num_asked(log) == asked + 21
    assert manifest.counts["not_asked"] == {"near_duplicate": 1}
    drops = [row for shard in manifest.drops for row in pq.read_table(desk.output / shard.uri).to_pylist()]
    assert [(row["id"], row["reason"]) for row in drops] == [(None, "near_duplicate")]

    examples, _ = read_examples(str(desk.output))
    first = examples[0].response
    quality = {"must_not_match": [first]}
    again = create_data.run(desk.config(**changes, quality=quality), handle, on_progress=lambda _: None)
    assert num_asked(log) == asked + 21
    assert again.counts["dropped"] == {"forbidden": 1}
    assert again.counts["kept"] == 20
