"""What costs a row one of its attempts, without Ray: a teacher that answers nobody costs time, up to a limit."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from raydistill.core.errors import EngineGoneError, EngineLostError
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.engine.routing import AFTER
from raydistill.teacher import attempt
from raydistill.teacher.attempt import Attempts
from tests.teacher.test_converse import SETTINGS

ANSWER = TokenResult([1], [0.0], "stop", Usage(1, 0, 1))
GONE = RayTaskError("generate", "", EngineGoneError("the engine is gone")).as_instanceof_cause()
LOST = RayTaskError("generate", "", EngineLostError("the engine died")).as_instanceof_cause()
BUSY = BackPressureError(num_queued_requests=1, max_queued_requests=1)
REFUSED = TokenResult([], [], "error", Usage(1, 0, 0), error="refused")


@dataclasses.dataclass
class Response:
    """What a handle's call gives: a failure, or what it says of each row."""

    request_id: str
    outcome: Exception | TokenResult
    num_rows: int

    @property
    def _request_metadata(self) -> SimpleNamespace:
        return SimpleNamespace(internal_request_id=self.request_id)

    def result(self, timeout_s: float) -> list[TokenResult]:
        """Return the results, or raise."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return [self.outcome] * self.num_rows

    def cancel(self) -> None:
        """Do nothing."""


class Handle:
    """A handle of an engine whose calls come out one after another as it is told."""

    def __init__(self, *outcomes: Exception | TokenResult, ever: Exception | TokenResult = ANSWER) -> None:
        self.generate = self
        self.after: list[str | None] = []
        self._outcomes: Iterator[Exception | TokenResult] = itertools.chain(outcomes, itertools.repeat(ever))

    def remote(self, rows: list[TokenRequest], **hint: str) -> Response:
        self.after.append(hint.get(AFTER))
        return Response(str(len(self.after)), next(self._outcomes), len(rows))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Time that passes only where one sleeps."""
    slept = [0.0]
    monkeypatch.setattr(attempt.time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(attempt.time, "sleep", slept.append)
    return lambda: sum(slept)


def ask(handle: Any, num_rows: int = 1, **changes: Any) -> list[TokenResult]:
    settings = dataclasses.replace(SETTINGS, timeout_seconds=600, **changes)
    return Attempts(handle, settings).ask([TokenRequest([1])] * num_rows)


def test_an_engine_that_comes_back_costs_no_attempt_and_another_replica_is_asked_meanwhile(clock) -> None:
    handle = Handle(*[GONE] * 9)
    assert ask(handle, 2, max_attempts=1) == [ANSWER] * 2
    assert handle.after == [None, *map(str, range(1, 10))]
    assert clock() > 20, "no more than three calls in ten seconds go to an engine that is gone"


def test_a_teacher_that_is_busy_costs_no_attempt() -> None:
    handle = Handle(*[BUSY] * 9)
    assert ask(handle, max_attempts=1) == [ANSWER]
    assert set(handle.after) == {None}


@pytest.mark.parametrize(
    ("failure", "why"), [(GONE, "EngineGoneError: the engine is gone"), (BUSY, "BackPressureError: ")]
)
def test_a_teacher_that_never_takes_a_row_fails_it_after_its_time_and_says_why(clock, failure, why) -> None:
    (result,) = ask(Handle(ever=failure), max_attempts=2)
    assert result.error is not None
    assert result.error.startswith(f"asked 2 times: no answer within 600 s: {why}")
    assert 1180 < clock() <= 1201


def test_a_refusal_costs_an_attempt() -> None:
    handle = Handle(ever=REFUSED)
    (result,) = ask(handle, max_attempts=2)
    assert (result.error, len(handle.after)) == ("asked 2 times: refused", 2)


def test_a_row_under_which_the_engine_dies_each_time_is_given_up(clock) -> None:
    (result,) = ask(Handle(ever=LOST), max_attempts=3)
    assert result.error == "asked 3 times: EngineLostError: the engine died"
    assert clock() < 5
