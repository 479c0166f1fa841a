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
    total_mib = total_memory_mib(setting.device)
    kind = "GPU" if setting.device.type == "cuda" else "machine"
    return describe_shortage(job, read_shape(job.model_dir).num_parameters, total_mib, kind, setting.num_workers)


def describe_shortage(job: Job, num_parameters: int, total_mib: float, kind: str, num_workers: int) -> str:
    """Return the message.

    Args:
        job: what was tried.
        num_parameters: of the base.
        total_mib: memory of one worker's device.
        kind: "GPU", of which every worker has its own, or "machine", which workers share.
        num_workers: of this run.
    """
    base_mib = num_parameters * BYTES[job.dtype] / 2**20
    head = (
        f"Memory is short: this {kind} has {total_mib / 1024:.1f} GiB, the base's weights in {job.dtype} take "
        f"{base_mib / 1024:.1f}. "
    )
    advice = []
    if job.dtype == "float32":
        advice.append("dtype=bfloat16")
    if kind == "machine":
        advice += ["num_workers=1"] if num_workers > 1 else []
    held_mib = base_mib / (num_workers if job.engine.zero_stage == 3 else 1)
    if kind == "GPU" and held_mib > WEIGHTS_SHARE * total_mib:
        workers = math.ceil(base_mib / (WEIGHTS_SHARE * total_mib))
        advice += [f"zero_stage=3 with num_workers={max(2, workers)} or more", "offload=parameters with zero_stage=3"]
    else:
        advice += ["micro_batch_size=1"] if job.engine.micro_batch_size != 1 else []
        advice += [] if job.gradient_checkpointing else ["gradient_checkpointing=true"]
        advice.append("a smaller max_length")
    return (
        f"{head}Set {', or '.join(advice)}. The same command goes on from the last checkpoint; with another dtype or "
        "max_length it is another run."
    )
