"""A row of tokens in vLLM's words, and vLLM's answer in ours."""

from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind

from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.core.topk import pack_top


def sampling_params(row: TokenRequest) -> SamplingParams:
    """Return vLLM's sampling parameters of a row.

    Raises:
        ValueError: the row asks for the most likely tokens and for the log-probabilities of given ones.
    """
    scores = list(row.score_token_ids)
    if scores and row.top_logprobs:
        raise ValueError("top_logprobs and score_token_ids in one row; ask for them in two")
    return SamplingParams(
        max_tokens=row.max_tokens,
        temperature=row.temperature,
        top_p=row.top_p,
        top_k=row.top_k if row.top_k > 0 else 0,
        seed=row.seed,
        stop=list(row.stop) or None,
        stop_token_ids=list(row.stop_token_ids) or None,
        ignore_eos=row.ignore_eos,
        logprobs=len(scores) if scores else (row.top_logprobs or 0),
        logprob_token_ids=scores or None,
        flat_logprobs=bool(row.top_logprobs),  # lists of numbers instead of an object for each entry
        detokenize=bool(row.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def make_result(row: TokenRequest, output: Any, name: str, latency_seconds: float) -> TokenResult:
    """Return our record of vLLM's RequestOutput."""
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    positions: Any = completion.logprobs if completion.logprobs is not None else []
    top_ids, top_logprobs = _read_top(positions, row.top_logprobs) if row.top_logprobs else (None, None)
    scores = (
        [[position[token].logprob for token in row.score_token_ids] for position in positions]
        if row.score_token_ids
        else None
    )
    return TokenResult(
        tokens=tokens,
        logprobs=_read_logprobs(positions, tokens),
        finish_reason=completion.finish_reason or "error",
        usage=Usage(len(row.tokens), output.num_cached_tokens or 0, len(tokens)),
        model=name,
        latency_seconds=latency_seconds,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        scores=scores,
    )


def _read_logprobs(positions: Any, tokens: list[int]) -> list[float]:
    """Return the log-probability of each token that was sampled."""
    if isinstance(positions, FlatLogprobs):
        return [positions.logprobs[start] for start, _ in zip(positions.start_indices, tokens, strict=True)]
    return [position[token].logprob for position, token in zip(positions, tokens, strict=True)]


def _read_top(positions: FlatLogprobs, top_logprobs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the most likely tokens at each position: the sampled one comes first, and again where it is among them."""
    starts = np.asarray(positions.start_indices, dtype=np.int64) + 1
    return pack_top(positions.token_ids, positions.logprobs, starts, positions.end_indices, top_logprobs)
