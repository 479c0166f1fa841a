"""One model with one set of prompts, scored in padded chunks; the prompts' common beginning is computed once.

Axes: B rows of a chunk, T tokens of its longest row after the shared prefix, P tokens of the shared prefix,
K completion tokens of its longest row, V vocabulary. Rows are padded on the left, so that completions end together.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raydistill.scoring.model import adapter_switch

logger = logging.getLogger(__name__)

MAX_CHUNK_FLOATS = 2**24  # of logits: 64 MiB in float32; four times as much is no faster and takes 500 MB more
MAX_CHUNK_ROWS = 8  # 8 copies of a prefix of 650 tokens of SmolLM2-135M are 240 MB
MAX_PREFIX_ERROR = 0.01  # nats; float32 gives 1e-4, a cache or mask that is not honoured more than 1


@dataclass(frozen=True)
class Arm:
    """A model, whether its adapter is on, one prompt a row, and the computed prefix that the prompts share.

    Attributes:
        prompts: token ids of each row's prompt.
        prefix: how many first tokens all prompts share (at most all but the last of the shortest).
        cache: keys and values of those tokens, one row; None without a shared prefix.
        plain: score row by row without cache or mask of our own: the model does not honour them.
    """

    model: Any
    prompts: list[list[int]]
    adapted: bool = True
    prefix: int = 0
    cache: Any = None
    plain: bool = False


def shared_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the longest token prefix that all rows have in common."""
    if not rows:
        return []
    low, high = min(map(list, rows)), max(map(list, rows))  # all others agree wherever these two do
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return list(low[:length])


@torch.inference_mode()
def open_arm(model: Any, prompts: Sequence[Sequence[int]], adapted: bool = True) -> Arm:
    """Return an Arm with the prompts' shared prefix computed, after a check that the model honours it.

    Args:
        model: of `load_model`.
        prompts: token ids, none empty.
        adapted: False switches the adapter off.
    """
    if not prompts or not all(prompts):
        raise ValueError("open_arm: at least one prompt is needed, and none may be empty.")
    rows = [list(prompt) for prompt in prompts]
    if _has_windows(model):
        logger.info("the model has sliding windows, which a mask of ours does not know: scoring row by row, slowly")
        return Arm(model, rows, adapted, plain=True)
    length = min(len(shared_prefix(rows)), min(len(row) for row in rows) - 1)
    cache = None
    if length:
        with adapter_switch(model, adapted):
            tokens = torch.tensor([rows[0][:length]])
            cache = model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values
    arm = Arm(model, rows, adapted, length, cache)
    error = _prefix_error(arm)
    if not error <= MAX_PREFIX_ERROR:
        logger.warning("the model does not honour a shared prefix (error %.3g nat): scoring row by row, slowly", error)
        return Arm(model, rows, adapted, plain=True)
    return arm


def _has_windows(model: Any) -> bool:
    """Return whether some of the model's layers see the last tokens only."""
    config = model.config.get_text_config()
    return bool(getattr(config, "sliding_window", None)) and bool(getattr(config, "use_sliding_window", True))


def chunk_rows(arms: Sequence[Arm], responses: Sequence[Sequence[int]], vocab_size: int) -> list[list[int]]:
    """Return the indices of the rows in chunks of similar length that fit in memory; empty responses are left out."""
    rows = [index for index, response in enumerate(responses) if response]
    rows.sort(key=lambda index: (len(responses[index]), sum(len(arm.prompts[index]) for arm in arms)))
    most = 1 if any(arm.plain for arm in arms) else MAX_CHUNK_ROWS
    chunks: list[list[int]] = []
    for index in rows:
        fits = bool(chunks) and len(chunks[-1]) < most
        if fits and (len(chunks[-1]) + 1) * len(responses[index]) * vocab_size <= MAX_CHUNK_FLOATS:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks


@torch.inference_mode()
def chunk_logprobs(arm: Arm, responses: Sequence[Sequence[int]], chunk: Sequence[int]) -> list[torch.Tensor]:
    """Return, for each row of a chunk, the log-probabilities [len(response), V] in nats, float32, at its response."""
    longest = max(len(responses[index]) for index in chunk)
    with adapter_switch(arm.model, arm.adapted):
        if arm.plain:
            tokens = torch.tensor([arm.prompts[chunk[0]] + list(responses[chunk[0]][:-1])])
            logits_BKV = arm.model(input_ids=tokens, use_cache=False, logits_to_keep=longest).logits
        else:
            logits_BKV = _forward(arm, responses, chunk, longest)
    return [
        torch.log_softmax(logits_BKV[row, longest - len(responses[index]) :].float(), dim=-1)
        for row, index in enumerate(chunk)
    ]


def _forward(arm: Arm, responses: Sequence[Sequence[int]], chunk: Sequence[int], longest: int) -> torch.Tensor:
    """Run a chunk after the prefix: our own 4D mask and positions, because a given cache makes both be ignored."""
    tails = [arm.prompts[index][arm.prefix :] + list(responses[index][:-1]) for index in chunk]
    width = max(len(tail) for tail in tails)
    pads_B = torch.tensor([width - len(tail) for tail in tails])
    tokens_BT = torch.tensor([[0] * (width - len(tail)) + tail for tail in tails])
    steps_T = torch.arange(width)
    positions_BT = (arm.prefix + steps_T - pads_B[:, None]).clamp(min=0)
    visible_BTT = (steps_T[None, None, :] <= steps_T[None, :, None]) & (steps_T >= pads_B[:, None])[:, None, :]
    visible_BTS = torch.nn.functional.pad(visible_BTT, (arm.prefix, 0), value=True)
    dtype = next(arm.model.parameters()).dtype
    mask_B1TS = torch.zeros(visible_BTS.shape, dtype=dtype).masked_fill(~visible_BTS, torch.finfo(dtype).min)[:, None]
    options: dict[str, Any] = {"use_cache": False}
    if arm.cache is not None:
        cache = copy.deepcopy(arm.cache)  # it grows in place
        cache.batch_repeat_interleave(len(chunk))
        options = {"use_cache": True, "past_key_values": cache}
    return arm.model(
        input_ids=tokens_BT, attention_mask=mask_B1TS, position_ids=positions_BT, logits_to_keep=longest, **options
    ).logits


def _prefix_error(arm: Arm) -> float:
    """Return the largest difference in nats of the shortest prompt scored beside the longest (so padded) and alone."""
    order = sorted(range(len(arm.prompts)), key=lambda index: len(arm.prompts[index]))
    chunk = [order[0], order[-1]] if len(order) > 1 else order
    responses = [prompt[-1:] for prompt in arm.prompts]  # any token will do: one position after each prompt
    together = chunk_logprobs(arm, responses, chunk)[0]
    alone = chunk_logprobs(Arm(arm.model, arm.prompts, arm.adapted, plain=True), responses, chunk[:1])[0]
    return float((together - alone).abs().max())
