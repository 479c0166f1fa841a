"""vLLM's sampler on CPU: one random number draws a token, and nothing is compiled on the way.

vLLM draws one for every token of the vocabulary, and for a row with a seed it does so twice. A teacher's rows all have
seeds: of SmolLM2-135M's 32 rows on two cores, a step's random numbers take as long as its model. Here a row's number
picks the token in whose part of the summed probabilities it falls: the same distribution, other answers to a seed.

And two functions of the sampler are compiled whatever `enforce_eager` says, by the first request that needs them, while
all others wait; on a machine without a C++ compiler the engine dies of it. Here none is. Registered through the entry
point `vllm.general_plugins`.
"""

from typing import Any

import torch


def register() -> None:
    """Patch vLLM's sampler; other platforms are left alone. May run more than once."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.sample import sampler
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    compiled: Any = sampler.batched_count_greater_than
    sampler.batched_count_greater_than = getattr(compiled, "_torchdynamo_orig_callable", compiled)
    if not hasattr(TopKTopPSampler, "_draws_once"):
        _patch(TopKTopPSampler)


def _patch(sampler: Any) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    forward = sampler.forward_cpu

    def forward_cpu(
        self: Any,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.logprobs_mode not in ("raw_logprobs", "raw_logits"):  # what is asked for then is made there
            return forward(self, logits, generators, k, p)
        return draw(apply_top_k_top_p(logits, k, p), generators), None

    sampler.forward_cpu, sampler._draws_once = forward_cpu, True


def draw(logits_NV: torch.Tensor, generators: dict[int, torch.Generator]) -> torch.Tensor:
    """Return a token for each of N rows, drawn by the softmax of its logits over a vocabulary of V.

    Args:
        logits_NV: float32; what must not be drawn is -inf.
        generators: of the rows that have a seed. Such a row's token depends on nothing but its logits and generator.
    """
    sums_NV = logits_NV.softmax(-1).cumsum(-1)  # summed up in float64 by torch, whatever the dtype
    points_N1 = torch.rand(len(logits_NV), 1)  # at most 1 - 2**-24: times the last sum, it is below that
    for row, generator in generators.items():
        points_N1[row] = torch.rand(1, generator=generator)
    tokens_N1 = torch.searchsorted(sums_NV, points_N1 * sums_NV[:, -1:], right=True)  # the first sum beyond the point
    return tokens_N1[:, 0].clamp_(max=logits_NV.shape[1] - 1)  # where there is none, since a logit is no number
