"""Attention of packed rows, row by row: what rows do not see of each other is not computed.

A mask over a whole packed sequence computes everything and throws most of it away. Steps of SmolLM2-135M in bfloat16,
rank 32, one thread with avx512_bf16: 8 rows of 92 tokens 149 tokens/s with a mask, 194 row by row, 232 in float32 (see
`attend`); 4 rows 168, 181 and 212 (the last with what `load_student` does about casts, which 8 rows gain 3 % from).
A teacher's rows, 1,056 tokens behind 500 of P, take 24 ms of CPU a layer row by row, 46 with a mask (float32).

On a GPU one call of flash attention's kernel for rows of different lengths does them all; a second one lets a teacher's
rows see P before them. Before every training `model.check_packing` and `teacher.check_teacher` compare what comes out
with the model's own passes over lone rows, on the device that it runs on.
"""

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "raydistill_rows"
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # query, key, value: [1, heads, T, width]


def give_rows(base: Any) -> None:
    """Let a model attend row by row where it is told the rows; older families of transformers keep sdpa and a mask."""
    if base._supports_attention_backend:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        base.set_attn_implementation(NAME)


def takes_rows(base: Any) -> bool:
    """Return whether `give_rows` had an effect."""
    return base.config.get_text_config()._attn_implementation == NAME


def attend(  # noqa: PLR0913 - transformers' signature, and what we pass through it
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: list[int] | None = None,
    behind_T: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention's output [1, T, heads, width] as transformers wants it.

    Args:
        module: the layer.
        query: [1, heads, T, width].
        key: [1, heads or fewer, K, width]: K is T, and what a cache holds before it.
        value: as key.
        attention_mask: of the whole; used where no rows are named.
        row_lengths: of the rows that make up the T tokens; each is causal and sees nothing else.
        behind_T: which tokens' rows stand behind what a cache holds, and see it too; None where there is none.
        sliding_window: how many tokens a token sees, itself included; None for all that came before.
        options: `scaling`, and what else transformers passes.
    """
    # On CPUs bfloat16's kernel is the slower one: 2.9 ms forward and backward for 90 tokens, 1.4 in float32 with both
    # casts; 12.1 and 10.3 for 300 (9 heads of 64, one thread with avx512_bf16).
    kept = torch.float32 if query.device.type == "cpu" else query.dtype
    query_dtype = query.dtype
    query, key, value = query.to(kept), key.to(kept), value.to(kept)
    with torch.autocast(query.device.type, enabled=False):
        if row_lengths is not None:
            heads, scale = (query, key, value), options.get("scaling")
            if not has_varlen(query.device, query.dtype) or (behind_T is not None and sliding_window is not None):
                output = _attend_rows(heads, row_lengths, behind_T, sliding_window, scale)
            elif behind_T is not None:
                output = _attend_behind(heads, row_lengths, behind_T, scale)
            else:
                output = _attend_varlen(heads, row_lengths, sliding_window, scale)[0]
            return output.to(query_dtype), None
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(kept)
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output.to(query_dtype), None


def _attend_rows(
    heads: Heads, row_lengths: list[int], behind_T: torch.Tensor | None, window: int | None, scale: float | None
) -> torch.Tensor:
    """Return what each row sees of itself, and of the keys before all rows where it stands behind them."""
    query, key, value = heads
    length = key.shape[2] - query.shape[2]
    shared_key, shared_value = key[:, :, :length], value[:, :, :length]
    queries = query.split(row_lengths, dim=2)
    keys, values = (tensor[:, :, length:].split(row_lengths, dim=2) for tensor in (key, value))
    starts = [0, *itertools.accumulate(row_lengths)][:-1]
    is_behind = [False] * len(starts) if behind_T is None else behind_T[starts].tolist()
    outputs = []
    for query, key, value, behind in zip(queries, keys, values, is_behind, strict=True):
        if behind:
            key, value = torch.cat([shared_key, key], dim=2), torch.cat([shared_value, value], dim=2)
        mask = _band(query.shape[2], key.shape[2], window, query.device)
        settings = {"attn_mask": mask, "is_causal": mask is None, "scale": scale}
        is_grouped = query.shape[1] != key.shape[1]
        outputs.append(F.scaled_dot_product_attention(query, key, value, **settings, enable_gqa=is_grouped))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _band(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which keys each of the last `num_queries` tokens sees, [queries, keys]; None for all up to itself."""
    before = num_keys - num_queries
    if not before and (window is None or num_keys <= window):
        return None
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(before)
    return seen if window is None else seen.triu(before + 1 - window)


def _attend_varlen(
    heads: Heads, row_lengths: list[int], window: int | None, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the log of the sum that its softmax divides by, float32 [1, T, heads, 1]."""
    before = -1 if window is None else window - 1
    return _call_varlen(heads, row_lengths, row_lengths, (before, 0), scale)  # so many before, none after


def _attend_behind(heads: Heads, row_lengths: list[int], behind_T: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Return what rows see of themselves and of the keys before them: two softmaxes made one by their sums."""
    query, key, value = heads
    num_tokens, length = query.shape[2], key.shape[2] - query.shape[2]
    own, own_sum = _attend_varlen((query, key[:, :, length:], value[:, :, length:]), row_lengths, None, scale)
    prefix = (query, key[:, :, :length], value[:, :, :length])
    shared, shared_sum = _call_varlen(prefix, [num_tokens], [length], (-1, -1), scale)
    share = torch.sigmoid(shared_sum - own_sum) * behind_T[None, :, None, None]
    return share * shared + (1 - share) * own


def _call_varlen(
    heads: Heads, query_lengths: list[int], key_lengths: list[int], window: tuple[int, int], scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in heads)  # [T, heads, width]
    query_starts, most_queries = _starts(tuple(query_lengths), query.device)
    key_starts, most_keys = _starts(tuple(key_lengths), query.device)
    output, log_sum = varlen_attn(
        query,
        key,
        value,
        cu_seq_q=query_starts,
        cu_seq_k=key_starts,
        max_q=most_queries,
        max_k=most_keys,
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None], log_sum.transpose(0, 1)[None, :, :, None]  # [heads, T], other than its docstring says


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether flash attention's kernel for rows of different lengths takes these: on NVIDIA's, 16 bits."""
    on_nvidia = device.type == "cuda" and torch.version.hip is None
    return on_nvidia and dtype != torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.lru_cache(maxsize=8)  # every layer of a pass asks
def _starts(row_lengths: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, int]:
    """Return where each row begins and the last one ends, int32 [rows + 1], and the longest row's length."""
    starts = torch.tensor([0, *itertools.accumulate(row_lengths)], dtype=torch.int32, device=device)
    return starts, max(row_lengths)
