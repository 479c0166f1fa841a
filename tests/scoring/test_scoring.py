"""Scoring against plain, one-row forward passes: padding, the shared prefix, adapters on and off, KL and the probe."""

import math

import pytest
import torch

from raydistill.core.errors import NotFoundError
from raydistill.core.records import ProbePoint
from raydistill.registry.probe import probe_passes, probe_shift
from raydistill.scoring import arms as arms_module
from raydistill.scoring.arms import chunk_rows, open_arm, shared_prefix
from raydistill.scoring.logprobs import completion_logprobs, kl_per_token
from raydistill.scoring.model import load_model
from raydistill.scoring.probe import build_probe
from tests.plain_passes import plain_logprobs
from tests.tiny_adapter import make_tiny_adapter

PROMPTS = [[7, 8, 9, 10, 11, 12], [7, 8, 9, 10, 3], [7, 8, 9, 10, 200, 4, 5, 6, 7, 8, 9], [7, 8, 9, 10, 11, 50, 60]]
RESPONSES = [[20, 21, 2], [30, 31, 32, 33, 34, 35, 36, 37, 2], [2], [90, 91, 92, 93, 94, 2]]
ROWS = list(zip(PROMPTS, RESPONSES, strict=True))


@pytest.fixture(scope="module")
def base(model_dir):
    return load_model(model_dir)


@pytest.fixture(scope="module")
def adapted(model_dir, adapter_dir):
    return load_model(model_dir, adapter_dir)


@pytest.mark.parametrize(
    ("rows", "prefix"),
    [
        ([], []),
        ([[1, 2, 3]], [1, 2, 3]),
        ([[1, 2, 3], [1, 2]], [1, 2]),
        ([[1, 2, 3], [1, 2, 4], [1, 5]], [1]),
        ([[1], []], []),
        ([[9, 1], [8, 1]], []),
    ],
)
def test_shared_prefix(rows, prefix):
    assert shared_prefix(rows) == prefix


def test_completion_logprobs_equal_plain_forward_passes(adapted):
    found = completion_logprobs(adapted, ROWS)
    for (prompt, response), logprobs in zip(ROWS, found, strict=True):
        expected = plain_logprobs(adapted, prompt, response)[range(len(response)), response]
        torch.testing.assert_close(logprobs, expected, atol=2e-4, rtol=0)


def test_a_model_with_sliding_windows_is_scored_with_them(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "num_key_value_heads": 1, "sliding_window": 3}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **sizes, initializer_range=0.5)).save_pretrained(
        tmp_path
    )
    model = load_model(str(tmp_path))
    for (prompt, response), logprobs in zip(ROWS, completion_logprobs(model, ROWS), strict=True):
        expected = plain_logprobs(model, prompt, response)[range(len(response)), response]
        torch.testing.assert_close(logprobs, expected, atol=2e-4, rtol=0)


def test_adapter_off_is_the_base_and_on_is_not(base, adapted):
    off, on, bare = completion_logprobs(adapted, ROWS, adapted=False), completion_logprobs(adapted, ROWS), []
    bare = completion_logprobs(base, ROWS)
    for one, other in zip(off, bare, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert max(float((one - other).abs().max()) for one, other in zip(on, bare, strict=True)) > 0.5


@pytest.mark.parametrize("prompts", [PROMPTS, [[1, *p] if i else p for i, p in enumerate(PROMPTS)], [PROMPTS[0]] * 4])
def test_rows_with_any_shared_prefix_score_the_same(base, prompts):
    rows = list(zip(prompts, RESPONSES, strict=True))
    arm = open_arm(base, prompts)
    assert not arm.plain
    assert arm.prefix == min(len(shared_prefix(prompts)), min(map(len, prompts)) - 1)
    for (prompt, response), found in zip(rows, completion_logprobs(base, rows), strict=True):
        expected = plain_logprobs(base, prompt, response)[range(len(response)), response]
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_scoring_twice_gives_the_same_because_the_prefix_does_not_grow(base):
    arm = open_arm(base, PROMPTS)
    first = arms_module.chunk_logprobs(arm, RESPONSES, [0, 1])
    second = arms_module.chunk_logprobs(arm, RESPONSES, [0, 1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_model_that_ignores_the_mask_is_scored_row_by_row(base, monkeypatch, caplog):
    honest = arms_module._forward

    def ignoring_padding(arm, responses, chunk, longest):
        logits = honest(arm, responses, chunk, longest)
        return logits + 1e-1 * torch.arange(logits.shape[-1])

    monkeypatch.setattr(arms_module, "_forward", ignoring_padding)
    arm = open_arm(base, PROMPTS)
    assert arm.plain
    assert "row by row" in caplog.text
    found = completion_logprobs(base, ROWS)
    expected = plain_logprobs(base, *ROWS[1])[range(len(RESPONSES[1])), RESPONSES[1]]
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=0)


def test_empty_rows_and_responses(base):
    assert completion_logprobs(base, []) == []
    found = completion_logprobs(base, [([7, 8], []), ([7, 9], [3, 2])])
    assert [len(logprobs) for logprobs in found] == [0, 2]
    with pytest.raises(ValueError, match="none may be empty"):
        completion_logprobs(base, [([], [3])])


def test_kl_equals_its_definition_and_is_zero_for_the_same_arm(base, adapted):
    short = [prompt[-2:] for prompt in PROMPTS]
    target = open_arm(adapted, PROMPTS, adapted=False)
    arms = {"student": open_arm(adapted, short), "base": open_arm(adapted, short, adapted=False), "self": target}
    done = []
    kl = kl_per_token(target, arms, RESPONSES, done.append)
    assert sum(done) == len(PROMPTS)
    for index, response in enumerate(RESPONSES):
        p = plain_logprobs(base, PROMPTS[index], response).double()
        for name, model in (("student", adapted), ("base", base)):
            q = plain_logprobs(model, short[index], response).double()
            expected = (p.exp() * (p - q)).sum(-1).float()
            torch.testing.assert_close(kl[name][index], expected, atol=1e-3, rtol=1e-3)
            assert (expected > 0).all()
        assert kl["self"][index].abs().max() < 1e-5


def test_chunks_hold_every_row_once_and_bound_the_logits(base, monkeypatch):
    monkeypatch.setattr(arms_module, "MAX_CHUNK_FLOATS", 2000)
    prompts = [[7, 8, index] for index in range(40)]
    responses = [[2] * (1 + index % 7) for index in range(40)]
    chunks = chunk_rows([open_arm(base, prompts)], responses, vocab_size=100)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(40))
    for chunk in chunks:
        assert len(chunk) <= arms_module.MAX_CHUNK_ROWS
        assert len(chunk) * max(len(responses[index]) for index in chunk) * 100 <= 2000


def test_probe_points_are_what_plain_scoring_gives_and_tell_adapter_from_base(model_dir, adapter_dir, base, adapted):
    rows = [([7, 8, 9, index], [20 + index, 30 + index, 2]) for index in range(20)]
    points, verifiable = build_probe(model_dir, adapter_dir, rows, num_points=16)
    assert len(points) == 16
    assert len({tuple(point.prefix[:4]) for point in points}) == 16  # one of each row, while there are rows
    for point in points:
        assert math.isclose(
            point.base, float(plain_logprobs(base, point.prefix, [point.token])[0, point.token]), abs_tol=1e-3
        )
        after = float(plain_logprobs(adapted, point.prefix, [point.token])[0, point.token])
        assert math.isclose(point.adapter, after, abs_tol=1e-3)
    assert verifiable == (probe_shift(points) >= 0.5)
    assert verifiable
    assert probe_passes(points, [point.adapter for point in points])[0]
    assert not probe_passes(points, [point.base for point in points])[0]
    assert all(isinstance(point, ProbePoint) for point in points)


def test_probe_takes_the_tokens_that_move_most(model_dir, adapter_dir, base, adapted):
    row = ([7, 8, 9], [20, 30, 40, 50, 60, 2])
    points, _ = build_probe(model_dir, adapter_dir, [row], num_points=2)
    before, after = plain_logprobs(base, *row), plain_logprobs(adapted, *row)
    shifts = sorted((abs(float(after[i, t] - before[i, t])), i) for i, t in enumerate(row[1]))
    assert sorted(len(point.prefix) - 3 for point in points) == sorted(step for _, step in shifts[-2:])


def test_probe_of_an_adapter_that_does_nothing_is_unverifiable(model_dir, tmp_path):
    nothing = make_tiny_adapter(model_dir, tmp_path / "nothing", scale=0.0)
    points, verifiable = build_probe(model_dir, nothing, ROWS)
    assert points
    assert not verifiable
    assert build_probe(model_dir, nothing, []) == ([], False)


def test_load_model_refuses_what_is_not_there(model_dir, tmp_path):
    with pytest.raises(NotFoundError, match="causal language model"):
        load_model(str(tmp_path))
    with pytest.raises(NotFoundError, match="adapter_model"):
        load_model(model_dir, tmp_path)
