"""Mixed batches in bfloat16, where near ties flip: log-probabilities as in solo runs, within 0.2."""

import itertools
import os
import random

import pytest

from tests.engine.lora_engine import ask, make_adapters, open_engine

pytest.importorskip("vllm")
pytestmark = pytest.mark.skipif("RAYDISTILL_MIXED_BATCHES" not in os.environ, reason="an engine: `make soak`")
TOKENS, TOP = 6, 20
MIXED_BATCHES = 5
TOLERANCE_NATS = 0.2  # what bfloat16 itself is off by, a token


def test_mixed_batches_in_bfloat16_are_within_rounding_of_solo_runs(model_dir, tmp_path):
    from vllm.lora.request import LoRARequest

    dice = random.Random(8)
    folders = make_adapters(model_dir, tmp_path)
    adapters = [None, *(LoRARequest(f"a{index}", index, folder) for index, folder in enumerate(folders, 1))]
    prompts = [[dice.randrange(3, 384) for _ in range(dice.choice((1, 4, 9, 30, 60)))] for _ in range(8)]
    rows = [(prompt, adapter) for prompt in prompts for adapter in adapters]
    with open_engine(model_dir, "bfloat16") as llm:
        solo = [ask(llm, [prompt], [adapter], max_tokens=TOKENS, top_logprobs=TOP)[0] for prompt, adapter in rows]
        batches = [[dice.randrange(len(rows)) for _ in range(dice.randrange(8, 17))] for _ in range(MIXED_BATCHES)]
        mixed = [
            ask(
                llm,
                *map(list, zip(*(rows[index] for index in batch), strict=True)),
                max_tokens=TOKENS,
                top_logprobs=TOP,
            )
            for batch in batches
        ]
    for batch, results in zip(batches, mixed, strict=True):
        for index, result in zip(batch, results, strict=True):
            assert differ(result, solo[index]) <= TOLERANCE_NATS, rows[index]
    mistaken = [
        differ(one, two) > TOLERANCE_NATS
        for first in range(0, len(rows), len(adapters))
        for one, two in itertools.permutations(solo[first : first + len(adapters)], 2)
    ]
    assert sum(mistaken) > 0.9 * len(mistaken), "the adapters answer alike, so this test would see no mistake"


def differ(one, two):
    """Return by how much two answers' log-probabilities differ at most, up to the first token that differs.

    There too, both were asked the same; a token that is not among the other's most likely ones differs without limit.
    """
    worst = 0.0
    for place, (token, other) in enumerate(zip(one.tokens, two.tokens, strict=True)):
        told = dict(zip(two.top_ids[place].tolist(), two.top_logprobs[place].tolist(), strict=True))
        worst = max(worst, abs(one.logprobs[place] - told.get(token, float("inf"))))
        if token != other:
            break
    return worst
