"""The student: a frozen Hugging Face model with PEFT's LoRA on every linear layer, run on packed rows.

Axes: T tokens of a packed sequence, N positions that predict a completion token, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from raydistill.core.errors import TrainingError
from raydistill.training.batches import EncodedRow, Packed, pack

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
    """Return the base model in `dtype`, frozen, with fresh float32 LoRA weights (B zero) drawn from the seed."""
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=DTYPES[dtype], attn_implementation="sdpa")
    names = list(targets) if targets else linear_layers(base)
    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    return get_peft_model(base, lora, autocast_adapter_dtype=True)  # pyright: ignore[reportReturnType]


def linear_layers(base: Any) -> list[str]:
    """Return the last names of all linear layers but the head: PEFT's "all-linear" would list every full name."""
    head = base.get_output_embeddings()
    layers = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and module is not head]
    return sorted({name.rpartition(".")[2] for name in layers})


def block_mask(rows_T: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive [1, 1, T, T] mask: a token sees its own row, up to itself.

    It is explicit because transformers finds packed rows by their positions only under conditions that are easy
    to miss (no mask, no cache object), and is silently wrong otherwise.
    """
    same_TT = rows_T[:, None] == rows_T[None, :]
    seen_TT = same_TT.tril()
    mask_TT = torch.zeros(seen_TT.shape, dtype=dtype, device=rows_T.device)
    return mask_TT.masked_fill(~seen_TT, torch.finfo(dtype).min)[None, None]


def forward_packed(model: Any, packed: Packed, dtype: str, device: torch.device) -> torch.Tensor:
    """Return float32 logits_NV at the positions that predict a completion token; the head runs on those alone."""
    rows_T = torch.tensor(_fill_up(packed.rows_T, FILLER_ROW), device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        output = model(
            input_ids=torch.tensor([_fill_up(packed.tokens_T, 0)], device=device),
            position_ids=torch.tensor([_fill_up(packed.positions_T, 0)], device=device),
            attention_mask=block_mask(rows_T, DTYPES[dtype]),
            logits_to_keep=torch.tensor(_fill_up(packed.keep_N, 0), device=device),
            use_cache=False,
        )
    return output.logits[0, : len(packed.keep_N)].float()


def _fill_up(values: list[int], filler: int) -> list[int]:
    """Return the values and as many fillers as make their number a multiple of SHAPE_MULTIPLE."""
    return values + [filler] * (-len(values) % SHAPE_MULTIPLE)


@torch.no_grad()
def check_packing(model: Any, rows: Sequence[EncodedRow], dtype: str, device: torch.device) -> float:
    """Return the mean absolute difference between packed and lone logits of a few rows.

    Raises:
        TrainingError: the model mixes rows of one packed sequence.
    """
    rows = list(rows)
    together = forward_packed(model, pack(rows), dtype, device)
    alone = torch.cat([forward_packed(model, pack([row]), dtype, device) for row in rows])
    difference = (together - alone).abs().mean().item()
    if not difference <= PACKING_TOLERANCE[dtype]:
        raise TrainingError(
            f"This student mixes the rows of a packed sequence: logits differ by {difference:.3g} on average, "
            f"allowed are {PACKING_TOLERANCE[dtype]}. Train it with micro_batch_size=1."
        )
    return difference
