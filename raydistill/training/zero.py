"""DeepSpeed: one configuration for ZeRO stages 0 to 3, and the engine made from it.

The frozen base is kept in its own dtype and only the float32 LoRA weights are trained (DeepSpeed's own `bf16` would
cast them to bfloat16 and make stage 0 another optimizer), so all four stages are the same AdamW in float32.
"""

import logging
import math
import os
from typing import Any

import torch
from torch import nn

ADAM = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}


def zero_config(stage: int, learning_rate: float, max_grad_norm: float | None, offload: str) -> dict[str, Any]:
    """Return DeepSpeed's configuration; gradient accumulation is ours, by explicit boundaries."""
    zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 0}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # torch_adam: DeepSpeed's own Adams are compiled on the spot, which needs a compiler
        "optimizer": {"type": "AdamW", "params": {**ADAM, "lr": learning_rate, "torch_adam": True}},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": max_grad_norm if max_grad_norm and stage > 0 else 0.0,
        "steps_per_print": 2**31,
    }


def start_engine(
    model: nn.Module,
    stage: int,
    learning_rate: float,
    on_gpu: bool,
    max_grad_norm: float | None = None,
    offload: str = "none",
) -> Any:
    """Return a DeepSpeed engine around the model; the process group must exist already.

    Args:
        model: frozen but for its LoRA weights.
        stage: 0 to 3.
        learning_rate: the optimizer's first; every step sets its own.
        on_gpu: whether the model lies on a GPU.
        max_grad_norm: the norm that `clip_gradients` and the engine's own step cut gradients to; None for none.
        offload: "none", "optimizer" or "parameters".
    """
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
        config=zero_config(stage, learning_rate, max_grad_norm, offload),
        dist_init_required=False,
    )
    return engine


def clip_gradients(engine: Any, max_grad_norm: float | None) -> float | None:
    """Clip the gradients of plain data parallel, before the step; ZeRO's stages clip in their own step.

    Returns:
        Their norm before; None in stages 1 to 3, where `gradient_norm` has it after the step.
    """
    if engine.zero_optimization_stage() > 0:
        return None
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    return torch.nn.utils.clip_grad_norm_(trained, max_grad_norm or math.inf).item()


def gradient_norm(engine: Any) -> float:
    """Return the norm of the last step's gradients over all weights and workers, before clipping; stages 1 to 3."""
    return float(engine.get_global_grad_norm())
