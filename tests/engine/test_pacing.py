"""A streamed answer's pieces: every event once and in order, and how many of them travel together."""

import asyncio

import pytest

from raydistill.core.errors import EngineLostError
from raydistill.engine import pacing
from raydistill.engine.args import make_llm_config
from raydistill.engine.config import EngineConfig
from raydistill.engine.pacing import SETTING, join_events
from raydistill.engine.server import TokenServer

EVENTS = [f"data: {number}\n\n" for number in range(12)]


def collect(parts, pause_seconds, clock, monkeypatch, num_first=2):
    """Return the pieces and what was raised; an event takes a second of a clock of its own."""
    monkeypatch.setattr(pacing.time, "monotonic", lambda: clock[0])

    async def make():
        for part in parts:
            clock[0] += 1.0
            if isinstance(part, Exception):
                raise part
            yield part

    async def main():
        pieces = []
        try:
            async for piece in join_events(make(), lambda: pause_seconds, num_first):
                pieces.append(piece)
        except EngineLostError as error:
            return pieces, error
        return pieces, None

    return asyncio.run(main())


@pytest.mark.parametrize(("pause_seconds", "lengths"), [(0, [1] * 12), (1, [1] * 12), (3, [1, 1, 3, 3, 3, 1])])
def test_events_that_come_sooner_than_a_pause_travel_together(pause_seconds, lengths, monkeypatch):
    pieces, error = collect(EVENTS, pause_seconds, [0.0], monkeypatch)
    assert "".join(pieces) == "".join(EVENTS) and error is None
    assert [piece.count("data: ") for piece in pieces] == lengths


@pytest.mark.parametrize("end", [{"error": {"message": "no"}}, EngineLostError("gone")])
def test_what_was_answered_before_a_failure_comes_before_it(end, monkeypatch):
    pieces, error = collect([*EVENTS[:6], end], 100, [0.0], monkeypatch)
    told = pieces + ([error] if error else [])
    assert told == [EVENTS[0], EVENTS[1], "".join(EVENTS[2:6]), end]


def test_a_whole_answer_passes_as_it_is(monkeypatch):
    assert collect([{"choices": []}], 100, [0.0], monkeypatch) == ([{"choices": []}], None)


@pytest.mark.parametrize(("given", "expected"), [({}, 100), ({"stream_pieces_per_second": 7}, 7)])
def test_the_setting_reaches_the_replica(given, expected):
    config = EngineConfig.model_validate({"accelerator": "cpu", "front": given})
    assert make_llm_config("m", "/m", config, TokenServer, lora=False).experimental_configs[SETTING] == expected
