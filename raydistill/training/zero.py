"""DeepSpeed: one configuration for ZeRO stages 0 to 3, and the engine made from it.

The frozen base is kept in its own dtype and only the float32 LoRA weights are trained (DeepSpeed's own `bf16` would
cast them to bfloat16 and make stage 0 another optimizer), so all four stages are the same AdamW in float32.
"""

import logging
import os
from typing import Any

from torch import nn

ADAM = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}


def zero_config(stage: int, learning_rate: float) -> dict[str, Any]:
    """Return DeepSpeed's configuration; gradient accumulation is ours, by explicit boundaries."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # torch_adam: DeepSpeed's own Adams are compiled on the spot, which needs a compiler
        "optimizer": {"type": "AdamW", "params": {**ADAM, "lr": learning_rate, "torch_adam": True}},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "steps_per_print": 2**31,
    }


def start_engine(model: nn.Module, stage: int, learning_rate: float, on_gpu: bool) -> Any:
    """Return a DeepSpeed engine around the model; the process group must exist already."""
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at import: without it DeepSpeed probes for accelerators
    import deepspeed

    # Where a compiler is found, DeepSpeed would build its shared-memory collectives on the spot (90 s, measured on two
    # cores) and fail where it is broken; with no op marked as compatible it uses torch's gloo.
    deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue] - made on access
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=trained,  # pyright: ignore[reportArgumentType] - its annotation is wrong
        config=zero_config(stage, learning_rate),
        dist_init_required=False,
    )
    return engine
