"""Waiting for a store that is away."""

import pytest

from raydistill.core import patience
from raydistill.core.errors import ConflictError, UnavailableError
from raydistill.core.patience import patiently


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.001)


def make_store(failures: list[Exception]):
    def read() -> str:
        if failures:
            raise failures.pop(0)
        return "there"

    return read


def test_a_store_that_comes_back_is_waited_for(caplog):
    assert patiently(make_store([UnavailableError("away"), UnavailableError("away")])) == "there"
    assert caplog.text.count("away Trying again.") == 2


def test_patience_ends():
    with pytest.raises(UnavailableError, match="away"):
        patiently(make_store([UnavailableError("away")] * 1000), patience_seconds=0.05)


def test_an_answer_is_an_answer():
    failures: list[Exception] = [ConflictError("moved"), ConflictError("moved")]
    with pytest.raises(ConflictError):
        patiently(make_store(failures))
    assert len(failures) == 1
