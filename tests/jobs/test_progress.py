"""What a run of create_data says of itself: the plan before it, one line on its way."""

import dataclasses
import re
from pathlib import Path

import pytest

from jobs import progress
from jobs.budget import STAND_IN, describe_writing, estimate_tokens
from jobs.data_config import CreateDataConfig, PriceConfig
from jobs.data_plan import make_plan
from jobs.progress import show_asking, show_evaluation, show_training
from raydistill.core.records import Manifest, Query
from raydistill.teacher.rows import render_messages
from tests.dataset.ledger import DRAFT
from tests.jobs.create_data_desk import Desk
from tests.jsonl import write_jsonl


def make_manifest(answered: int, tokens: int, dropped: int = 1) -> Manifest:
    counts = {"asked": 100, "answered": answered, "kept": answered - dropped, "dropped": {"empty": dropped}}
    all_tokens = {"prompt": 10 * tokens, "cached": 0, "completion": tokens}
    return dataclasses.replace(DRAFT, counts=counts, tokens=all_tokens, cost=tokens / 1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_line_has_rates_of_this_run_and_fits_a_terminal(monkeypatch, caplog, clock):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with caplog.at_level("INFO"), show_asking(80, make_manifest(20, 1000)) as show:
        clock[0] = 110.0
        show(make_manifest(60, 3000))
    (last,) = caplog.messages
    assert last == "asked 40/80  4 rows/s  200 tokens/s  kept 40  dropped 0  cost 2  0:00:10 left"
    assert len(last) <= 80


def test_asked_is_kept_and_dropped_in_one_line(monkeypatch, caplog, clock):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with caplog.at_level("INFO"), show_asking(70, make_manifest(8, 0, dropped=2)) as show:
        for answered, dropped in ((8, 2), (24, 3), (32, 3)):
            clock[0] += 1
            show(make_manifest(answered, 0, dropped))
    numbers = [[int(found) for found in re.findall(r"(?:asked|kept|dropped) (\d+)", line)] for line in caplog.messages]
    assert numbers == [[0, 0, 0], [16, 15, 1], [24, 23, 1]]


def test_a_log_gets_a_line_every_30_seconds(caplog, clock):
    with caplog.at_level("INFO"), show_asking(80, make_manifest(2, 2)) as show:
        seen = []
        for clock[0] in (100.5, 129.0, 130.0, 159.0, 159.9, 160.0):
            show(make_manifest(2, 2))
            seen.append(len(caplog.messages))
    assert seen == [0, 0, 1, 1, 1, 2]


LINE = {"train/loss_nats": 1.25, "validation/loss_nats": 2.5}


def test_a_log_gets_a_line_of_training_every_half_minute_and_the_commands_output_none(monkeypatch, capsys, caplog):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with caplog.at_level("INFO"), show_training(None) as report:
        for step in range(7):
            clock[0] += 10
            report(step, 120, LINE if step == 5 else {"train/loss_nats": 3.0})
    assert caplog.messages == [
        "step 2/120: training, 3.000 nats",
        "step 5/120: training, 1.250 nats, held out 2.500",
    ]
    assert capsys.readouterr().out == ""


def test_the_bar_of_training_is_on_stderr(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take it for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with show_training(None) as report:
        report(3, 12, LINE)
    out, err = capsys.readouterr()
    assert out == "" and "training, 1.250 nats, held out 2.500" in err and "25%" in err


def test_the_bar_of_asking_is_on_stderr_and_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take it for a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    with show_asking(1_000_000, make_manifest(20, 1000)) as show:
        show(make_manifest(500_020, 12_001_000, dropped=4321))
    out, err = capsys.readouterr()
    bar, figures = err.strip().splitlines()[-2:]
    assert out == "" and max(len(bar), len(figures)) <= 80
    assert re.search(r"asking ━+.* 500000/1000000 0:00:0\d left", bar)
    assert re.search(r"rows/s  \d+ tokens/s  kept 495680  dropped 4320  cost 1.2e\+04$", figures)


def test_the_bars_of_an_evaluation_are_on_stderr(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with show_evaluation() as on_step:
        on_step("answers", 0.5)
        on_step("latency", 1.0)
    out, err = capsys.readouterr()
    assert out == "" and "evaluate: answers" in err and "50%" in err and "evaluate: latency" in err


def test_a_log_gets_a_line_of_an_evaluation_every_30_seconds(capsys, caplog, clock):
    with caplog.at_level("INFO"), show_evaluation() as on_step:
        for clock[0], share in ((110.0, 0.1), (131.0, 0.4), (140.0, 0.5)):
            on_step("likelihood", share)
    assert caplog.messages == ["evaluate: likelihood, 40% done"]
    assert capsys.readouterr().out == ""


def test_prices_are_for_a_million_tokens():
    tokens = {"prompt": 3_000_000, "cached": 2_000_000, "completion": 500_000}
    assert PriceConfig(input=2, output=8).cost(tokens) == 10
    assert PriceConfig(input=2, cached_input=0.5, output=8).cost(tokens) == 7


def test_the_plan_is_told_in_tokens_and_money(tmp_path: Path, model_dir: str):
    desk = Desk(tmp_path, model_dir, [f"Plan {index}" for index in range(10)])
    desk.prompt.write_text("Be brief and kind to everybody who asks. " * 5)
    prices = {"input": 1e6, "cached_input": 0, "output": 1e6}
    config = desk.config(num_examples=10, max_tokens=7, prices=prices, max_cost=50)
    plan = make_plan(config)
    estimate = estimate_tokens(plan, config, 10)
    lengths = [len(render_messages(query.messages, plan.prompt, plan.renderer)) for query in plan.index.sample]
    assert estimate.prompt == sum(lengths)
    assert estimate.completion == 70
    assert 0 < estimate.prompt - estimate.cached < sum(lengths) / 2, "P is the same in every row but the first"
    text = estimate.describe(config)
    least = estimate.prompt - estimate.cached
    assert text.endswith(f"; from {least:.4g} for the prompts alone to {least + 70:.4g}, max_cost is 50")


def test_the_plan_of_conversations_counts_every_turn(tmp_path: Path, model_dir: str):
    desk = Desk(tmp_path, model_dir, [])
    turns = [{"role": "user", "content": f"Turn {turn} is long enough to count."} for turn in range(3)]
    history = [turns[0], {"role": "assistant", "content": "left out " * 50}, *turns[1:]]
    write_jsonl(desk.queries, {"messages": history}, {"messages": turns[:1]})
    prices = {"input": 1e6, "output": 1e6}
    config = desk.config(num_examples=2, max_tokens=7, answer_turns="all", prices=prices)
    plan = make_plan(config)
    estimate = estimate_tokens(plan, config, 2)
    answer = {"role": "assistant", "content": STAND_IN}
    talk = [turns[0], answer, turns[1], answer, turns[2]]
    prompts = [talk[:1], talk[:1], talk[:3], talk]
    lengths = [len(render_messages(messages, plan.prompt, plan.renderer)) for messages in prompts]
    assert estimate.prompt == sum(lengths)
    assert estimate.completion == 4 * 7
    assert estimate.repeated == (1 + 2) * 7
    most = estimate.prompt + estimate.repeated + estimate.completion
    assert estimate.describe(config).endswith(f"prompts alone to {most:.4g}")
    assert "read again as at most 21 prompt tokens" in estimate.describe(config)
    single = estimate_tokens(plan, config.model_copy(update={"answer_turns": "last"}), 2)
    assert (single.completion, single.repeated) == (2 * 7, 0)


def test_the_plan_has_what_a_judge_takes(tmp_path: Path, model_dir: str):
    desk = Desk(tmp_path, model_dir, [f"Plan {index}" for index in range(10)])
    desk.prompt.write_text("Be brief and kind to everybody who asks. " * 5)
    judge = {"rubric": "Is it true?", "threshold": 3, "max_tokens": 11}
    config = desk.config(num_examples=10, max_tokens=7, prices={"input": 1e6, "output": 1e6}, judge=judge)
    plan = make_plan(config)
    without = estimate_tokens(dataclasses.replace(plan, rubric=None), config, 10)
    estimate = estimate_tokens(plan, config, 10)
    assert estimate.judge is not None and estimate.judge.completion == 110
    blind = config.model_copy(update={"judge": config.judge.model_copy(update={"sees_prompt": False})})
    unseen = estimate_tokens(make_plan(blind), blind, 10).judge
    length = len(plan.renderer.encode_response(desk.prompt.read_text()))
    assert unseen is not None and estimate.judge.prompt - unseen.prompt >= 9 * length, "a judge that sees P reads it"
    judged = estimate.judge.prompt + 70 + 110
    most = without.prompt + 70 + judged
    assert estimate.describe(config).endswith(f"for the prompts alone to {most:.4g}")
    assert f"the judge at most {estimate.judge.prompt + 70:,} prompt tokens" in estimate.describe(config)
    rest = estimate_tokens(plan, config, 0)
    assert (rest.prompt, rest.completion, rest.judge) == (0, 0, estimate.judge), "all is answered, nothing judged"


def test_the_plan_has_what_queries_take_that_the_teacher_writes(tmp_path: Path, model_dir: str):
    desk = Desk(tmp_path, model_dir, ["How are you?"])
    expand = {"enabled": True, "queries_per_request": 5, "max_tokens": 100}
    config = desk.config(num_examples=401, expand=expand, prices={"input": 0, "output": 1e6})
    text = describe_writing(make_plan(config), config, [Query("q", [{"role": "user", "content": "How are you?"}])])
    assert re.match(r"to write: 400 queries, about [\d,]+ prompt tokens in 100 requests, about 10,000 completion", text)
    assert text.endswith("; up to 1e+04")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_cost": 5}, "max_cost needs prices"),
        ({"prices": {"input": -1, "output": 1}}, "greater than or equal to 0"),
        ({"smoke_rows": 4, "smoke_min_kept": 5}, r"smoke_min_kept \(5\) is above smoke_rows \(4\)"),
        ({"queries": None}, "expand.enabled=true"),
        ({"quality": {"must_match": ["("]}}, "no regular expression"),
        ({"quality": {"json_schema": {"type": 3}}}, "schema"),
        ({"judge": {"rubric": "good?"}}, "threshold"),
        ({"top_logprobs": 21}, "less than or equal to 20"),
        ({"near_duplicates": 0.6, "expand": {"enabled": True}}, "is below expand.near_threshold"),
        ({"near_duplicates": 0.1}, "greater than or equal to 0.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, model_dir: str, changes: dict, said: str):
    desk = Desk(tmp_path, model_dir, ["a"])
    with pytest.raises(ValueError, match=said):
        desk.config(**changes)


@pytest.mark.parametrize(
    ("num_rows", "num_replicas", "actors"), [(200, 1, 2), (10, 1, 1), (100_000, 1, 2), (100_000, 8, 16), (1, 1, 1)]
)
def test_there_are_actors_enough_for_the_rows_at_the_teacher(num_rows, num_replicas, actors):
    config = CreateDataConfig.model_validate(
        {"output_file": "x", "teacher_model": "x", "num_examples": 1, "queries": "x", "prompt": "x"}
    )
    assert config.count_actors(num_rows, num_replicas) == actors
