"""How well a step uses its hardware: floating-point operations against what the device can do, and memory."""

import resource
import time
from typing import Any

import psutil
import torch

FLOPS_A_PARAMETER_AND_TOKEN = 4  # forward, and backward to the activations: the frozen base needs no weight gradients
MATMUL_SIZE = 1024

# Dense matrix products in operations a second, from the makers' data sheets (SXM where there are several).
GPU_PEAK_FLOPS = {
    ("H200", "bfloat16"): 989e12,
    ("H200", "float32"): 67e12,
    ("H100", "bfloat16"): 989e12,
    ("H100", "float32"): 67e12,
    ("A100", "bfloat16"): 312e12,
    ("A100", "float32"): 19.5e12,
    ("L40S", "bfloat16"): 362e12,
    ("L40S", "float32"): 91.6e12,
    ("L4", "bfloat16"): 121e12,
    ("L4", "float32"): 30.3e12,
    ("A10G", "bfloat16"): 70e12,
    ("A10G", "float32"): 31.2e12,
}


def count_parameters(model: Any) -> int:
    """Return the weights that every token is multiplied with: all but an input embedding that is not the head too."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    apart = embedding.weight.numel() if head is None or head.weight is not embedding.weight else 0
    return sum(parameter.numel() for parameter in model.parameters()) - apart


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Return the floating-point operations a second that one worker's device can do; None for an unknown GPU.

    A CPU's are measured, with this process's threads, because cores, clocks and units for bfloat16 all differ.
    """
    if device.type == "cpu":
        return _measure_matmul(getattr(torch, dtype))
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    words = name.replace("-", " ").split()
    return next((peak for (model, kind), peak in GPU_PEAK_FLOPS.items() if model in words and kind == dtype), None)


def _measure_matmul(dtype: torch.dtype) -> float:
    square = torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype)
    _time_matmul(square)  # the first one makes the kernel
    fastest = min(_time_matmul(square) for _ in range(3))
    return 2 * MATMUL_SIZE**3 / fastest


def _time_matmul(square: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.matmul(square, square)
    return time.perf_counter() - start


def memory_mib(device: torch.device) -> float:
    """Return this worker's largest memory so far: the GPU's where it has one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def total_memory_mib(device: torch.device) -> float:
    """Return the memory of this worker's GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    return psutil.virtual_memory().total / 2**20
