"""The student: a frozen Hugging Face model with PEFT's LoRA on every linear layer, run on packed rows.

Axes: T tokens of a packed sequence, P tokens of a prefix before it, N positions that predict a completion token,
H width of the model, V vocabulary.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from raydistill.core.errors import TrainingError
from raydistill.training import attention
from raydistill.training.batches import EncodedRow, Laid, Lesson, Packed, pack
from raydistill.training.head import bare_model, headless, open_head

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Mean absolute difference of packed and lone logits. SmolLM2-135M has 2e-6 in float32 and 0.04 in bfloat16, which
# rounds to 8 bits; where rows see each other it has 1.5.
PACKING_TOLERANCE = {"float32": 1e-2, "bfloat16": 0.3}

# T and N are filled up to multiples of this: oneDNN compiles and keeps a kernel for every shape that it meets. With
# every length another one a worker grew from 0.7 to 2.2 GB in 30 steps of SmolLM2-135M and was still growing.
SHAPE_MULTIPLE = 32
FILLER_ROW = -1  # the fillers' own row: no other row sees them


def load_student(
    model_dir: str, rank: int, alpha: int, seed: int, dtype: str, targets: Sequence[str] | None = None
) -> PeftModel:
    """Return the base model in `dtype`, frozen, with fresh float32 LoRA weights (B zero) drawn from the seed.

    It is in evaluation mode and has no dropout in training mode either: it must say what the served model says, and
    the held-out loss must not be a random number. Adapters in bfloat16 bring no speed: autocast's casts of them are too
    small to be seen, and a fused function of each layer brings 2 to 5 % (tests/bench/lora_variants.py).
    """
    config = _without_dropout(AutoConfig.from_pretrained(model_dir))
    base = AutoModelForCausalLM.from_pretrained(
        model_dir, config=config, dtype=DTYPES[dtype], attn_implementation="sdpa"
    )
    attention.give_rows(base)
    names = list(targets) if targets else linear_layers(base)
    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    model = get_peft_model(base, lora, autocast_adapter_dtype=True)
    if dtype == "bfloat16":
        for module in model.modules():
            if isinstance(module, LoraLayer):
                # It would cast what comes in to float32, and autocast at once back to bfloat16.
                module.cast_input_dtype_enabled = False
    return model.eval()  # pyright: ignore[reportReturnType]


def _without_dropout(config: Any) -> Any:
    """Return the config with all shares of what is dropped at 0: OPT's and GPT-2's are 0.1, under several names."""
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    return config


def checkpoint_activations(model: Any) -> None:
    """Keep only what enters each layer and compute the rest again in the backward pass: less memory, more time."""
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # transformers checkpoints in training mode only


def linear_layers(base: Any) -> list[str]:
    """Return the last names of all linear layers but the head: PEFT's "all-linear" would list every full name."""
    head = base.get_output_embeddings()
    layers = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and module is not head]
    return sorted({name.rpartition(".")[2] for name in layers})


@dataclass(frozen=True)
class Prefix:
    """Keys and values of tokens that stand before rows of a teacher's pass: computed once, seen by all of these.

    Attributes:
        length: P.
        cache: transformers' own, of one row.
    """

    length: int
    cache: Any

    def copy(self) -> Any:
        """Return the cache for one pass: that grows its layers in place, but makes new tensors of their own."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return cache


def block_mask(rows_T: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive [1, 1, T, T] mask: a token sees its own row, up to itself.

    It is explicit because transformers finds packed rows by their positions only under conditions that are easy
    to miss (no mask, no cache object), and is silently wrong otherwise.
    """
    seen_TT = (rows_T[:, None] == rows_T[None, :]).tril()
    return _additive(seen_TT, dtype)[None, None]


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def forward_hidden(
    model: Any, laid: Laid, dtype: str, device: torch.device, prefix: Prefix | None = None
) -> torch.Tensor:
    """Return the hidden states_NH from which the head predicts the completion tokens.

    Args:
        model: a PeftModel, or DeepSpeed's engine around one.
        laid: the rows.
        dtype: of matrix products.
        device: of the model.
        prefix: stands before those rows of a Lesson that are marked so.
    """
    rows_T = torch.tensor(_fill_up(laid.rows_T, FILLER_ROW), device=device)
    positions_T = torch.tensor(_fill_up(laid.positions_T, 0), device=device)
    options: dict[str, Any] = {"use_cache": False}
    by_row = attention.takes_rows(bare_model(model))
    # Attention does not look at this one where it is told the rows, and transformers makes none of its own where one
    # has four axes. A whole one is 2 GiB for 32k tokens in bfloat16.
    mask = torch.zeros(1, 1, 1, 1, dtype=DTYPES[dtype], device=device)
    if prefix is not None and isinstance(laid, Lesson):
        # With a cache given, transformers ignores positions and makes a mask of its own, unless it gets these.
        behind_T = torch.tensor(_fill_up(laid.behind_T, False), device=device)
        positions_T = positions_T + prefix.length * behind_T
        options = {"use_cache": True, "past_key_values": prefix.copy()}
        if by_row:
            options |= {"row_lengths": _row_lengths(laid, len(rows_T)), "behind_T": behind_T}
        else:
            before_TP = _additive(behind_T[:, None].expand(-1, prefix.length), DTYPES[dtype])
            mask = torch.cat([before_TP[None, None], block_mask(rows_T, DTYPES[dtype])], dim=-1)
    elif by_row:
        options["row_lengths"] = _row_lengths(laid, len(rows_T))
    else:
        mask = block_mask(rows_T, DTYPES[dtype])
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"), headless(model):
        output = model(
            input_ids=torch.tensor([_fill_up(laid.tokens_T, 0)], device=device),
            position_ids=positions_T[None],
            attention_mask=mask,
            logits_to_keep=torch.tensor(_fill_up(laid.keep_N, 0), device=device),
            **options,
        )
    return output.logits[0, : len(laid.keep_N)]


def _row_lengths(laid: Laid, num_tokens: int) -> list[int]:
    """Return the lengths of the rows, the fillers at the end as one more."""
    lengths = [len(list(own)) for _, own in itertools.groupby(laid.rows_T)]
    return lengths + [num_tokens - len(laid.rows_T)] * (num_tokens > len(laid.rows_T))


def forward_packed(model: Any, packed: Packed, dtype: str, device: torch.device) -> torch.Tensor:
    """Return float32 logits_NV at the positions that predict a completion token."""
    hidden_NH = forward_hidden(model, packed, dtype, device)
    with open_head(model) as head:
        return head.logits(hidden_NH)


def _fill_up(values: list[Any], filler: Any) -> list[Any]:
    """Return the values and as many fillers as make their number a multiple of SHAPE_MULTIPLE."""
    return values + [filler] * (-len(values) % SHAPE_MULTIPLE)


def plain_logits(model: Any, prompt: list[int], response: list[int], dtype: str) -> torch.Tensor:
    """Return the float32 logits [len(response), V] of one row by the model itself: no mask, no head of ours."""
    device = next(getattr(model, "module", model).parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        tokens = torch.tensor([[*prompt, *response[:-1]]], device=device)
        return model(input_ids=tokens, use_cache=False, logits_to_keep=len(response)).logits[0].float()


@torch.no_grad()
def check_packing(model: Any, rows: Sequence[EncodedRow], dtype: str, device: torch.device) -> float:
    """Return the mean absolute difference between our logits of packed rows and the model's own of lone ones.

    Raises:
        TrainingError: the model mixes rows of one packed sequence, does more after its head than `head` knows, or
            gives no finite logits.
    """
    together = forward_packed(model, pack(rows), dtype, device)
    alone = torch.cat([plain_logits(model, row.prompt_tokens, row.response_tokens, dtype) for row in rows])
    difference = (together - alone).abs().mean().item()
    if not math.isfinite(difference):
        raise TrainingError(
            "This student's own logits are no finite numbers before any training: its weights are damaged, or too "
            f"large for {dtype}. Check the model, or set dtype=float32."
        )
    if not difference <= PACKING_TOLERANCE[dtype]:
        found = f"logits differ by {difference:.3g} on average, allowed are {PACKING_TOLERANCE[dtype]}."
        if len(rows) == 1:
            raise TrainingError(f"This student cannot be trained: its head is not a plain linear layer; {found}")
        raise TrainingError(f"This student mixes the rows of a packed sequence: {found} Train with micro_batch_size=1.")
    return difference
