"""How long an attempt waits for the next one."""

import pytest

from raydistill.teacher import attempt
from raydistill.teacher.attempt import backoff_seconds


def test_the_wait_doubles_up_to_a_longest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt.random, "uniform", lambda low, high: high)
    assert [backoff_seconds(number) for number in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize(("number", "longest"), [(1, 0.5), (3, 2), (50, 8)])
def test_rows_that_failed_together_do_not_come_back_together(number: int, longest: float) -> None:
    waits = [backoff_seconds(number) for _ in range(300)]
    assert longest / 2 <= min(waits) and max(waits) <= longest
    assert len(set(waits)) > 290
    assert min(waits) < 0.55 * longest and max(waits) > 0.95 * longest, "the whole range is used"
