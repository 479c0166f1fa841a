"""Greedy completions by a base model with and without an adapter, for adapters whose training data is not known."""

from collections.abc import Sequence
from pathlib import Path

import torch

from raydistill.scoring.logprobs import Row
from raydistill.scoring.model import adapter_switch, load_model


@torch.no_grad()
def complete_greedily(
    model_dir: str, adapter_dir: str | Path, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[Row]:
    """Return (prompt tokens, response tokens) of each prompt twice: as the adapter goes on, and as the base does.

    Args:
        model_dir: local folder of the base model.
        adapter_dir: local folder of the adapter.
        prompts: token ids.
        max_tokens: of one response.
    """
    model = load_model(model_dir, adapter_dir)
    rows: list[Row] = []
    for prompt in prompts:
        for adapted in (True, False):
            with adapter_switch(model, adapted):
                tokens_BT = torch.tensor([list(prompt)])
                output_BT = model.generate(
                    input_ids=tokens_BT,
                    attention_mask=torch.ones_like(tokens_BT),
                    do_sample=False,
                    max_new_tokens=max_tokens,
                    pad_token_id=0,
                )
            rows.append((list(prompt), output_BT[0, len(prompt) :].tolist()))
    return rows
