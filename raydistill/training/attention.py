"""Attention of packed rows, row by row: what rows do not see of each other is not computed.

A mask over a whole packed sequence computes everything and throws most of it away. Steps of SmolLM2-135M in bfloat16,
rank 32, one thread with avx512_bf16: 8 rows of 92 tokens 149 tokens/s with a mask, 194 row by row, 232 in float32 (see
`attend`); 4 rows 168, 181 and 212 (the last with what `load_student` does about casts, which 8 rows gain 3 % from).
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "raydistill_rows"


def give_rows(base: Any) -> None:
    """Let a model attend row by row where it is told the rows; older families of transformers keep sdpa and a mask."""
    if base._supports_attention_backend:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        base.set_attn_implementation(NAME)


def takes_rows(base: Any) -> bool:
    """Return whether `give_rows` had an effect."""
    return base.config.get_text_config()._attn_implementation == NAME


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: list[int] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention's output [1, T, heads, width] as transformers wants it.

    Args:
        module: the layer.
        query: [1, heads, T, width].
        key: [1, heads or fewer, T, width].
        value: as key.
        attention_mask: of the whole; used where no rows are named.
        row_lengths: of the rows that make up the T tokens; each is causal and sees nothing else.
        options: `scaling`, and what else transformers passes.
    """
    # On CPUs bfloat16's kernel is the slower one: 2.9 ms forward and backward for 90 tokens, 1.4 in float32 with both
    # casts; 12.1 and 10.3 for 300 (9 heads of 64, one thread with avx512_bf16).
    kept = torch.float32 if query.device.type == "cpu" else query.dtype
    query_dtype, is_grouped = query.dtype, query.shape[1] != key.shape[1]
    query, key, value = query.to(kept), key.to(kept), value.to(kept)
    with torch.autocast(query.device.type, enabled=False):
        if row_lengths is None:
            if attention_mask is not None and attention_mask.is_floating_point():
                attention_mask = attention_mask.to(kept)
            output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
            return output.to(query_dtype), None
        outputs = [
            F.scaled_dot_product_attention(*row, is_causal=True, scale=options.get("scaling"), enable_gqa=is_grouped)
            for row in zip(*(tensor.split(row_lengths, dim=2) for tensor in (query, key, value)), strict=True)
        ]
    return torch.cat(outputs, dim=2).to(query_dtype).transpose(1, 2).contiguous(), None
