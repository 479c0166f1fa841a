"""What `/status` says of several replicas: each in its own words, and only what all agree on as the application's."""

import asyncio

import pytest

from raydistill.engine import status as rooms
from raydistill.engine.status import ask_replicas, merge_statuses


def make_status(replica, aliases, refused=None, error=None):
    models = ["base", *aliases]
    unread = {"triage/v0009": error} if error else {}
    told = {"aliases": aliases, "refused": refused or {}, "unread": unread, "loading": {}, "storage_error": error}
    return {"replica": replica, "base_model": "base", "models": models, **told}


def test_an_alias_counts_where_every_replica_serves_the_same_version():
    old, new = "triage/v0001@a", "triage/v0002@b"
    first = make_status("r1", {"triage/final": new, "triage/candidate": new})
    second = make_status("r2", {"triage/final": old, "triage/candidate": new}, {"triage/v0003": "NaN"}, "away")
    merged = merge_statuses([second, first])
    assert merged["aliases"] == {"triage/candidate": new}
    assert merged["refused"] == {"triage/v0003": "NaN"}
    assert merged["storage_error"] == "away"
    assert merged["unread"] == {"triage/v0009": "away"}
    assert merged["models"] == ["base", "triage/final", "triage/candidate"]
    assert merged["replicas"] == [first, second]


def test_one_replica_is_what_it_says():
    one = make_status("r1", {"triage/final": "triage/v0001@a"})
    assert merge_statuses([one]) == {**{k: v for k, v in one.items() if k != "replica"}, "replicas": [one]}
    teacher = {"replica": "t", "base_model": "base", "models": ["base"]}
    assert merge_statuses([teacher]) == {"base_model": "base", "models": ["base"], "replicas": [teacher]}


class Engine:
    """A handle whose broadcasts end as told, one after the other."""

    def __init__(self, *rounds):
        self.rounds = list(rounds)

    def broadcast(self, method):
        assert method == "status"
        return self

    async def results_async(self, timeout_s, return_exceptions):
        answers = self.rounds.pop(0)
        if isinstance(answers, Exception):
            raise answers
        return answers


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([[{"a": 1}, {"a": 2}]], [{"a": 1}, {"a": 2}]),
        ([[{"a": 1}, RuntimeError("died")], [{"a": 1}]], [{"a": 1}]),
        ([TimeoutError(), [{"a": 1}]], [{"a": 1}]),
        ([[{"a": 1}, RuntimeError("died")]] * 3, [{"a": 1}]),
        ([TimeoutError()] * 3, []),
    ],
)
def test_a_dead_replica_is_left_out_and_hides_no_living_one(rounds, expected, monkeypatch):
    monkeypatch.setattr(rooms, "PAUSE_SECONDS", 0)
    engine = Engine(*rounds)
    assert asyncio.run(ask_replicas(engine)) == expected
    assert engine.rounds == []
