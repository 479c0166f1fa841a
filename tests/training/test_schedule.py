"""The rate of every step: up in a line, then as the schedule says."""

import pytest

from raydistill.training.schedule import Schedule


def _rates(kind: str, warmup_steps: int = 2) -> list[float]:
    schedule = Schedule(1.0, kind, warmup_steps, num_steps=10)
    return [schedule.rate_at(step) for step in range(11)]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_rate_rises_in_a_line_to_its_peak(kind):
    assert _rates(kind)[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert _rates(kind, warmup_steps=0)[0] == 1.0


def test_rate_goes_on_as_the_schedule_says():
    assert _rates("linear")[2:] == pytest.approx([1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0])
    assert _rates("cosine")[2::2] == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0])
    assert _rates("constant")[2:] == [1.0] * 9
