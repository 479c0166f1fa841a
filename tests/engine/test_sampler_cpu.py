"""On CPU a token is drawn by one random number: rightly distributed, by a row's own seed, and without a compiler."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("vllm")

from raydistill.engine.sampler_cpu import draw

V = 50
PROGRAM = """
import torch
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins

load_general_plugins()
from vllm.v1.sample import sampler
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

for rows in (1, 2, 5):
    logits = torch.randn(rows, 50)
    ranks = sampler.batched_count_greater_than(logits, logits.max(1, keepdim=True).values)
    assert ranks.tolist() == [1] * rows
    for top_k, generators in ((None, {}), (1, {}), (1, {0: torch.Generator()})):
        kept = logits if top_k else logits.masked_fill(logits < logits.max(1, keepdim=True).values, -torch.inf)
        k = torch.full((rows,), 1) if top_k else None
        drawn, _ = TopKTopPSampler()(kept.clone(), generators, k, None)
        assert drawn.tolist() == logits.argmax(1).tolist()
print("all right" if current_platform.is_cpu() else "no CPU build")
"""


def test_the_sampler_runs_where_there_is_no_compiler(tmp_path):
    env = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    if "no CPU build" in done.stdout:
        pytest.skip("vllm's build here is not the one for CPUs")


@pytest.mark.parametrize("seeded", [True, False])
def test_tokens_are_drawn_by_the_softmax(seeded):
    torch.manual_seed(0)
    rows, rounds = 2000, 50
    logits_V = torch.randn(V) * 2
    logits_V[[3, V - 1]] = -torch.inf
    generators = {row: torch.Generator().manual_seed(row) for row in range(rows)} if seeded else {}
    counts_V = torch.zeros(V)
    for _ in range(rounds):
        counts_V += torch.bincount(draw(logits_V.expand(rows, -1), generators), minlength=V)
    expected_V = logits_V.softmax(-1) * rows * rounds
    may_be = logits_V.isfinite()
    chi_square = ((counts_V - expected_V)[may_be] ** 2 / expected_V[may_be]).sum().item()
    assert chi_square < 85, "of 47 degrees of freedom it is above 85 once in 1,700 times"
    assert counts_V[~may_be].sum() == 0


def test_a_seeded_rows_tokens_do_not_depend_on_the_rows_beside_it():
    logits_NV = torch.randn(6, V)

    def answer(beside, place):
        generator = torch.Generator().manual_seed(5)
        rows = [*beside[:place], 0, *beside[place:]]
        return [draw(logits_NV[rows], {place: generator})[place].item() for _ in range(20)]

    alone = answer([], 0)
    assert len(set(alone)) > 1
    assert alone == answer([1, 2, 3], 2) == answer([4, 5], 0)


def test_the_largest_random_number_draws_a_token_that_may_be_drawn(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, generator=None: torch.full(size, 1 - 2**-24))
    logits_NV = torch.randn(2000, V, generator=torch.Generator().manual_seed(0))
    logits_NV[:, -5:] = -torch.inf
    assert draw(logits_NV, {}).max() < V - 5


def test_what_is_no_number_is_still_a_token():
    logits_NV = torch.randn(2, V)
    logits_NV[0] = torch.nan
    tokens = draw(logits_NV, {0: torch.Generator()})
    assert tokens.min() >= 0 and tokens.max() < V
