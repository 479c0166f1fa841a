"""What a run needs to go on: LoRA weights, Adam's moments and the step, as safetensors and JSON.

DeepSpeed's own checkpoints are pickled, do not fit another number of workers, and a missing `latest` file starts
anew in silence. These hold whole tensors by name, so any number of workers and any ZeRO stage can go on from them.

A checkpoint's folder: adapter/ (PEFT's format), optimizer.safetensors, state.json.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from raydistill.core.errors import TrainingError

ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


def _trained(engine: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def gather_weights(engine: Any) -> dict[str, torch.Tensor]:
    """Return the whole float32 LoRA weights by name, on the CPU; all workers must call it together."""
    from deepspeed.utils import safe_get_full_fp32_param

    if engine.zero_optimization_stage() == 0:
        return {name: parameter.detach().float().cpu() for name, parameter in _trained(engine)}
    return {name: safe_get_full_fp32_param(parameter).detach().cpu() for name, parameter in _trained(engine)}  # pyright: ignore[reportOptionalMemberAccess]


def gather_moments(engine: Any) -> dict[str, torch.Tensor]:
    """Return Adam's whole moments as `<parameter>/<moment>`; all workers must call it together, after a step."""
    from deepspeed.utils import safe_get_full_optimizer_state

    gathered = {}
    for name, parameter in _trained(engine):
        for moment in MOMENTS:
            if engine.zero_optimization_stage() == 0:
                value = engine.basic_optimizer.state[parameter][moment]
            else:
                value = safe_get_full_optimizer_state(parameter, moment)
            gathered[f"{name}/{moment}"] = value.detach().cpu().reshape(-1)  # pyright: ignore[reportOptionalMemberAccess]
    return gathered


def save_checkpoint(engine: Any, step: int, folder: Path | None, base_model: str) -> None:
    """Write a checkpoint; all workers must call it together.

    Args:
        engine: DeepSpeed's engine around a PeftModel, after at least one step.
        step: steps done.
        folder: where to; None on the workers that only take part in gathering.
        base_model: what the adapter's config names as its base.
    """
    weights, moments = gather_weights(engine), gather_moments(engine)
    if folder is None:
        return
    save_adapter(engine.module, weights, folder / ADAPTER, base_model)
    save_file(moments, folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")


def save_adapter(model: PeftModel, weights: dict[str, torch.Tensor], folder: Path, base_model: str) -> None:
    """Write an adapter in PEFT's format, float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load_weights(model: PeftModel, folder: Path) -> int:
    """Put a checkpoint's LoRA weights into a model that no engine holds yet; returns the steps done.

    Raises:
        TrainingError: the checkpoint is of another adapter.
    """
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    weights = load_file(folder / ADAPTER / ADAPTER_WEIGHTS)
    if set(weights) != expected:
        raise TrainingError(
            f"The checkpoint holds {len(weights)} LoRA tensors, the student has {len(expected)}, or others. "
            "Give another log_path."
        )
    set_peft_model_state_dict(model, weights)
    return int(json.loads((folder / STATE).read_text(encoding="utf-8"))["step"])


def load_moments(engine: Any, step: int, folder: Path) -> None:
    """Put a checkpoint's Adam moments and step count into an engine whose optimizer has done one idle step."""
    from deepspeed.utils import safe_set_full_optimizer_state

    moments = load_file(folder / OPTIMIZER)
    for name, parameter in _trained(engine):
        for moment in MOMENTS:
            value = moments[f"{name}/{moment}"].to(engine.device)
            if engine.zero_optimization_stage() == 0:
                engine.basic_optimizer.state[parameter][moment].copy_(value.reshape(parameter.shape))
            elif engine.zero_optimization_stage() == 3:
                _set_own_part(parameter, moment, value)
            else:
                safe_set_full_optimizer_state(parameter, value.reshape(parameter.shape), moment)
    for state in engine.basic_optimizer.state.values():
        if "step" in state:
            state["step"].fill_(step)


def _set_own_part(parameter: torch.nn.Parameter, moment: str, value: torch.Tensor) -> None:
    """Set this worker's part of a moment under ZeRO-3.

    DeepSpeed's own setter of whole tensors fails where the number of workers does not divide the number of elements,
    because it forgets the padding of the last part (seen in 0.19.8 with three workers).
    """
    from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state

    own = safe_get_local_optimizer_state(parameter, moment)
    assert own is not None
    first = torch.distributed.get_rank() * own.numel()
    part = torch.zeros_like(own)
    filled = value[first : first + own.numel()]
    part[: filled.numel()] = filled
    safe_set_local_optimizer_state(parameter, part, moment)
