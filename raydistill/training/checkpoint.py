"""What a run needs to go on: LoRA weights, Adam's moments and the step, as safetensors and JSON.

DeepSpeed's own checkpoints are pickled, do not fit another number of workers, and a missing `latest` file starts
anew in silence. These hold whole tensors by name, so any number of workers and any ZeRO stage can go on from them.
How a checkpoint lies in its folder, and what makes it whole: saved.py.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from raydistill.core.errors import TrainingError
from raydistill.training.saved import ADAPTER, ADAPTER_WEIGHTS, BEST, OPTIMIZER, State, read_state, seal

MOMENTS = ("exp_avg", "exp_avg_sq")
Weights = dict[str, torch.Tensor]


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


def gather_adapter(engine: Any) -> Weights:
    """Return the whole LoRA weights as PEFT names them in files; all workers must call it together."""
    return get_peft_model_state_dict(engine.module, state_dict=gather_weights(engine), save_embedding_layers=False)


def save_checkpoint(engine: Any, state: State, folder: Path | None, base_model: str, best: Weights | None) -> None:
    """Write a whole checkpoint; all workers must call it together.

    Args:
        engine: DeepSpeed's engine around a PeftModel, after at least one step.
        state: how far the run is.
        folder: where to; None on the workers that only take part in gathering.
        base_model: what the adapter's config names as its base.
        best: the adapter with the lowest held-out loss, where it is not this one.
    """
    adapter, moments = gather_adapter(engine), gather_moments(engine)
    if folder is None:
        return
    _save_adapter(engine.module, adapter, folder / ADAPTER, base_model)
    save_file(moments, folder / OPTIMIZER)
    if best is not None:
        _save_adapter(engine.module, best, folder / BEST, base_model)
    seal(folder, state)


def _save_adapter(model: PeftModel, adapter: Weights, folder: Path, base_model: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / ADAPTER_WEIGHTS)
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load_weights(model: PeftModel, folder: Path) -> State:
    """Put a checkpoint's LoRA weights into a model that no engine holds yet; returns how far the run was.

    Raises:
        TrainingError: the checkpoint is not whole, or of another adapter.
    """
    state = read_state(folder)
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    weights = load_file(folder / ADAPTER / ADAPTER_WEIGHTS)
    if set(weights) != expected:
        raise TrainingError(
            f"The checkpoint holds {len(weights)} LoRA tensors, the student has {len(expected)}, or others. "
            "Give another log_path."
        )
    set_peft_model_state_dict(model, weights)
    return state


def load_best(folder: Path, state: State) -> Weights | None:
    """Return a checkpoint's best adapter so far, as `gather_adapter` does; None where nothing was measured."""
    return load_file(folder / state.best_folder / ADAPTER_WEIGHTS) if state.best_folder else None


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
