"""Checks, agreement, bootstrap and latency medians: pure parts, each against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.config import validate
from raydistill.core.errors import ConfigError, ServiceError
from raydistill.core.records import TokenResult, Usage
from raydistill.evaluation import latency
from raydistill.evaluation.checks import is_valid, read_labels
from raydistill.evaluation.config import CheckConfig, EvaluateConfig
from raydistill.evaluation.latency import measure_latency
from raydistill.evaluation.metrics import gap_closed, measure_agreement, valid_share
from raydistill.evaluation.reference import Reply

TRIAGE = CheckConfig(
    format="json_line",
    keys=["team", "priority", "reply"],
    allowed={"team": ["billing", "network"], "priority": ["low", "high"]},
    labels=["team", "priority"],
)
GOOD = '{"team": "billing", "priority": "high", "reply": "We refund it."}'


def reply(text, query=0, finished=True):
    return Reply(query, text, [1, 2], finished)


def answer(team="billing", priority="high"):
    return reply(f'{{"team": "{team}", "priority": "{priority}", "reply": "ok"}}')


@pytest.mark.parametrize(
    ("text", "finished", "valid"),
    [
        (GOOD, True, True),
        (f"  {GOOD}\n", True, True),
        (GOOD, False, False),
        ("", True, False),
        (f"Sure! {GOOD}", True, False),
        (f"{GOOD}\n{GOOD}", True, False),
        (GOOD.replace(", ", ",\n"), True, False),
        (GOOD.replace("billing", "sales"), True, False),
        (GOOD.replace('"reply"', '"answer"'), True, False),
        (GOOD.replace("}", ', "more": "x"}'), True, False),
        (GOOD.replace("}", ', "team": "billing"}'), True, False),
        (GOOD.replace('"We refund it."', "3"), True, False),
        (GOOD.replace("We refund it.", " "), True, False),
        ('["billing"]', True, False),
        ("[" * 100_000, True, False),
        ("NaN", True, False),
    ],
)
def test_json_line_check(text, finished, valid):
    assert is_valid(text, finished, TRIAGE) is valid
    assert read_labels(text, finished, TRIAGE) == (("billing", "high") if valid else None)


def test_text_check_looks_for_the_pattern_anywhere():
    check = CheckConfig(must_match=[r"(?i)executive summary"])
    assert is_valid("Intro.\nExecutive Summary: fine", True, check)
    assert not is_valid("Intro.", True, check)
    assert not is_valid("Executive Summary: cut", False, check)
    assert is_valid("anything", True, CheckConfig())
    assert not is_valid(" \n", True, CheckConfig())
    assert read_labels("anything", True, CheckConfig()) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "json_line"}, "needs keys"),
        ({"format": "json_line", "keys": ["a"], "labels": ["b"]}, "name b"),
        ({"labels": ["b"]}, "json_line"),
        ({"must_match": ["("]}, "no regular expression"),
        ({"format": "xml"}, "json_line"),
    ],
)
def test_check_config_refuses_what_does_not_fit_together(values, said):
    with pytest.raises(ConfigError, match=said):
        validate(EvaluateConfig, {"check": values}, "task.toml")


def test_valid_share_counts():
    assert valid_share([answer(), reply("no"), reply("no"), answer()], TRIAGE) == 0.5


def test_agreement_is_over_the_teachers_valid_answers_and_beats_the_best_constant_or_not():
    teacher = [answer("billing", "high"), answer("billing", "low"), answer("network", "low"), reply("nonsense")]
    student = [answer("billing", "high"), answer("billing", "high"), reply("nonsense"), answer()]
    found = measure_agreement(teacher, student, TRIAGE)
    assert found["queries"] == 3
    assert found["student"] == pytest.approx(1 / 3)
    assert found["majority"] == pytest.approx(1 / 3)
    assert found["fields"]["team"] == {"student": pytest.approx(2 / 3), "majority": pytest.approx(2 / 3)}
    assert found["fields"]["priority"] == {"student": pytest.approx(1 / 3), "majority": pytest.approx(2 / 3)}
    assert measure_agreement(teacher, teacher, TRIAGE)["student"] == 1


def test_agreement_is_none_without_labels_or_valid_teacher_answers():
    assert measure_agreement([answer()], [answer()], CheckConfig())["student"] is None
    assert measure_agreement([reply("x")], [answer()], TRIAGE)["majority"] is None


def test_gap_closed_is_one_minus_the_ratio_of_sums_and_its_interval_holds_it():
    share, (low, high) = gap_closed([4.0, 2.0, 2.0], [1.0, 0.5, 0.5], [0, 1, 2])
    assert share == pytest.approx(0.75)
    assert low == pytest.approx(0.75)
    assert high == pytest.approx(0.75)
    share, (low, high) = gap_closed([4.0, 2.0, 2.0], [0.0, 0.0, 2.0], [0, 1, 2])
    assert share == pytest.approx(0.75)
    assert low < 0.75 < high


def test_gap_closed_draws_answers_on_one_query_together():
    rng = np.random.default_rng(0)
    base, student = rng.uniform(1, 2, 40), rng.uniform(0, 1, 40)
    apart = gap_closed(base, student, list(range(40)))[1]
    merged = gap_closed(base.reshape(20, 2).sum(1), student.reshape(20, 2).sum(1), list(range(20)))[1]
    together = gap_closed(base, student, [index // 2 for index in range(40)])[1]
    assert together == pytest.approx(merged)
    assert together != pytest.approx(apart)


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 9)), min_size=1, max_size=20), st.integers(0, 5))
def test_gap_interval_is_ordered_finite_and_repeatable(pairs, seed):
    base, student = zip(*pairs, strict=True)
    queries = list(range(len(pairs)))
    share, (low, high) = gap_closed(base, student, queries, seed)
    assert low <= high
    assert np.isfinite([share, low, high]).all()
    assert gap_closed(base, student, queries, seed) == (share, [low, high])


class PacedEndpoint:
    """Lets the clock run by a known time for each batch, by arm and in the order asked."""

    def __init__(self, seconds, fail=0):
        self.now = 0.0
        self.seconds = {name: list(values) for name, values in seconds.items()}
        self.calls = []
        self.fail = fail

    def __call__(self, rows):
        self.calls.append(rows)
        self.now += self.seconds[rows[0].model].pop(0)
        results = []
        for row in rows:
            self.fail -= 1
            error = "overloaded" if self.fail >= 0 else None
            results.append(TokenResult([7] * row.max_tokens, [], "length", Usage(1, 0, 0), error=error))
        return results


def test_latency_is_the_median_of_turns_without_the_warm_up(monkeypatch):
    config = EvaluateConfig(latency_repeats=3, throughput_repeats=1, latency_tokens=10, concurrency=4)
    endpoint = PacedEndpoint({"fast": [50, 1, 2, 9, 0.5], "slow": [50, 3, 30, 4, 2]})
    monkeypatch.setattr(latency.time, "perf_counter", lambda: endpoint.now)
    shares = []
    arms = {"one": ("fast", [[1], [2]]), "two": ("slow", [[3], [4], [5]])}
    found = measure_latency(config, endpoint, arms, shares.append)
    assert found == {
        "one_seconds": pytest.approx(2),
        "two_seconds": pytest.approx(4),
        "one_tokens_per_second": pytest.approx(80),
        "two_tokens_per_second": pytest.approx(20),
    }
    assert [calls[0].model for calls in endpoint.calls] == ["fast", "slow"] * 5
    assert [len(calls) for calls in endpoint.calls] == [1] * 8 + [4, 4]
    assert all(row.ignore_eos and row.max_tokens == 10 for rows in endpoint.calls for row in rows)
    assert shares[-1] == 1


def test_a_row_that_fails_once_is_asked_again_and_twice_is_an_error():
    config = EvaluateConfig(latency_repeats=1, throughput_repeats=1, latency_tokens=1, concurrency=1)
    arms = {"one": ("m", [[1]])}
    assert measure_latency(config, PacedEndpoint({"m": [0.0] * 9}, fail=1), arms)["one_tokens_per_second"] > 0
    with pytest.raises(ServiceError, match="overloaded"):
        measure_latency(config, PacedEndpoint({"m": [0.0] * 9}, fail=2), arms)
