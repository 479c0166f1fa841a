"""What to say where memory is short: which settings need less of it, for this student on this device."""

import math

import torch

from raydistill.training.job import Job
from raydistill.training.shape import read_shape
from raydistill.training.steps import Setting
from raydistill.training.usage import total_memory_mib

WEIGHTS_SHARE = 0.6  # of a device's memory; where the base takes more, nothing done about activations makes it fit
BYTES = {"float32": 4, "bfloat16": 2}


def is_shortage(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had, on a GPU or by torch's allocator for the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "not enough memory" in str(error) or "out of memory" in str(error)


def explain_shortage(job: Job, setting: Setting) -> str:
    """Return what takes the memory and which settings fit."""
    num_parameters = read_shape(job.model_dir).num_parameters
    machine_mib = total_memory_mib(torch.device("cpu"))
    if setting.device.type != "cuda":
        return describe_shortage(job, num_parameters, machine_mib, "machine", setting.num_workers)
    gpu_mib = total_memory_mib(setting.device)
    return describe_shortage(job, num_parameters, gpu_mib, "GPU", setting.num_workers, machine_mib)


def describe_shortage(
    job: Job, num_parameters: int, total_mib: float, kind: str, num_workers: int, machine_mib: float = math.inf
) -> str:
    """Return the message; what it advises is reckoned to fit.

    Args:
        job: what was tried.
        num_parameters: of the base.
        total_mib: memory of one worker's device.
        kind: "GPU", of which every worker has its own, or "machine", which workers share.
        num_workers: of this run.
        machine_mib: memory of the machine around a GPU.
    """
    size_mib = {dtype: num_parameters * count / 2**20 for dtype, count in BYTES.items()}
    room_mib = WEIGHTS_SHARE * total_mib
    head = (
        f"Memory is short: this {kind} has {total_mib / 1024:.1f} GiB, the base's weights in {job.dtype} take "
        f"{size_mib[job.dtype] / 1024:.1f}"
    )
    if kind == "machine":
        head += f" in each of {num_workers} workers" if num_workers > 1 else ""
        held = float(num_workers)
        choices = _fit_machine(job.dtype, size_mib, room_mib, num_workers)
    else:
        held = _held_by_gpu(job, num_workers)
        choices = _fit_gpu(job.dtype, size_mib, room_mib, held)
        choices += _fit_offload(job.dtype, size_mib, WEIGHTS_SHARE * machine_mib / num_workers)
    if size_mib[job.dtype] * held <= room_mib:
        choices = _shrink_activations(job, kind, num_workers)
    if not choices:
        needed_gib = size_mib["bfloat16"] / WEIGHTS_SHARE / 1024
        return (
            f"{head}. Nothing that can be set makes this base fit. Take a smaller student_model, or a machine with "
            f"{math.ceil(needed_gib)} GiB or more."
        )
    return (
        f"{head}. Set {', or '.join(choices)}. The same command goes on from the last checkpoint; with another dtype "
        "or max_length it is another run."
    )


def _held_by_gpu(job: Job, num_workers: int) -> float:
    """Return the part of the base that lies on each GPU."""
    if job.engine.offload == "parameters":
        return 0.0
    return 1 / num_workers if job.engine.zero_stage == 3 else 1.0


def _shrink_activations(job: Job, kind: str, num_workers: int) -> list[str]:
    choices = ["dtype=bfloat16"] if job.dtype == "float32" else []
    choices += ["num_workers=1"] if kind == "machine" and num_workers > 1 else []
    choices += ["micro_batch_size=1"] if job.engine.micro_batch_size != 1 else []
    choices += [] if job.gradient_checkpointing else ["gradient_checkpointing=true"]
    return [*choices, "a smaller max_length"]


def _fit_machine(dtype: str, size_mib: dict[str, float], room_mib: float, num_workers: int) -> list[str]:
    """Return what makes the base fit where each worker loads the whole of it, whatever the zero_stage."""
    choices = []
    if dtype == "float32" and size_mib["bfloat16"] * num_workers <= room_mib:
        choices.append("dtype=bfloat16")
    if num_workers > 1 and size_mib[dtype] <= room_mib:
        choices.append("num_workers=1")
    if not choices and num_workers > 1 and size_mib["bfloat16"] <= room_mib:
        choices.append("dtype=bfloat16 with num_workers=1")
    return choices


def _fit_gpu(dtype: str, size_mib: dict[str, float], room_mib: float, held: float) -> list[str]:
    """Return what makes the base fit; `held` is the part of it that a GPU holds as it was tried."""
    choices = []
    if dtype == "float32" and size_mib["bfloat16"] * held <= room_mib:
        choices.append("dtype=bfloat16")
    elif dtype == "float32":
        choices.append(f"dtype=bfloat16 with zero_stage=3 and {_workers(size_mib['bfloat16'], room_mib)}")
    return [*choices, f"zero_stage=3 with {_workers(size_mib[dtype], room_mib)}"]


def _workers(size_mib: float, room_mib: float) -> str:
    return f"num_workers={max(2, math.ceil(size_mib / room_mib))} or more"


def _fit_offload(dtype: str, size_mib: dict[str, float], room_mib: float) -> list[str]:
    """Return how the base fits in the machine's memory, of which a worker has `room_mib` for the base it loads."""
    if size_mib[dtype] <= room_mib:
        return ["offload=parameters with zero_stage=3"]
    if size_mib["bfloat16"] <= room_mib:
        return ["dtype=bfloat16 with zero_stage=3 and offload=parameters"]
    return []
