"""How well one GPU trains: model FLOPs utilisation, what KL costs, and what logits take, on random Llama shapes.

    python -m tests.bench.bench_gpu_train [--shapes 1b 8b] [--repeats 10]
    python -m tests.bench.bench_gpu_train --shapes tiny --pack-tokens 256 --row-tokens 64    # on a CPU: that it runs

PyTorch, transformers and peft alone: no Ray, no DeepSpeed; the step, the packing and the head are the trainer's own.
Rank 32 on all linear layers, packed rows, a step of one pack. Utilisation counts 4 FLOPs a parameter and token (the
frozen base needs no weight gradients) of the student's pass, for KL too. Where the peak of the device is not known it
is left out. `kl_later_epochs` is a step whose rows the teacher was asked for before, which one worker keeps. Memory of
the logits: the most that is allocated above hidden states and weights, by chunks and at once.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from raydistill.training.batches import EncodedRow
from raydistill.training.head import open_head
from raydistill.training.losses import chunked_sums, score_tokens
from raydistill.training.model import load_student
from raydistill.training.steps import Setting, apply_step, backward_step
from raydistill.training.teacher import Memory, open_prefix
from raydistill.training.usage import FLOPS_A_PARAMETER_AND_TOKEN, count_parameters, memory_mib, peak_flops
from tests.bench.machine import describe_machine

RANK = 32
RATE = 1e-4
PROMPT_TOKENS = 512  # of P, before the teacher's rows
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}


class PlainEngine:
    """What a step needs of DeepSpeed's engine, with torch's AdamW on one device."""

    def __init__(self, module: Any) -> None:
        """Take a student on its device."""
        self.module = module
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def __call__(self, **inputs: Any) -> Any:
        """Run the student."""
        return self.module(**inputs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """One device has nothing to reduce."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients."""
        loss.backward()

    def step(self) -> None:
        """Move the weights."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Measure every shape and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b", "8b"])
    parser.add_argument("--pack-tokens", type=int, default=8192)
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    runs = {shape: _measure(SHAPES[shape], options, device) for shape in options.shapes}
    machine = describe_machine()
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    print(json.dumps({"machine": machine, "options": vars(options), "runs": runs}, indent=2))
    dist.destroy_process_group()


def _measure(shape: dict[str, Any], options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    model = _make_student(shape, dtype, options.pack_tokens, device)
    engine = PlainEngine(model)
    num_rows = options.pack_tokens // options.row_tokens
    rows = _rows(num_rows, options.row_tokens, shape["vocab_size"])
    prefix_tokens = [7] * PROMPT_TOKENS
    num_parameters = count_parameters(model.get_base_model())
    setting = Setting(0, 1, device, dtype, pack_tokens=options.pack_tokens)
    taught = replace(setting, prefix=open_prefix(engine, prefix_tokens, dtype, device))
    remembered = replace(taught, memory=Memory())  # the warm-up is its first epoch
    arms = {
        "cross_entropy": lambda: backward_step(engine, rows, setting),
        "kl": lambda: backward_step(engine, [_with_teacher(row) for row in rows], taught),
        "kl_later_epochs": lambda: backward_step(engine, [_with_teacher(row) for row in rows], remembered),
    }
    seconds = {name: [] for name in arms}
    for repeat in range(options.repeats + 2):  # the first two make kernels and fill the allocator
        for name, arm in arms.items():
            elapsed = _time(lambda arm=arm: (arm(), apply_step(engine, RATE)), device)
            seconds[name] += [elapsed] if repeat > 1 else []
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    num_tokens = sum(row.num_tokens for row in rows)
    flops, peak = FLOPS_A_PARAMETER_AND_TOKEN * num_parameters * num_tokens, peak_flops(device, dtype)
    return {
        "parameters": num_parameters,
        "tokens_a_step": num_tokens,
        "step_seconds": medians,
        "spread_seconds": {name: [min(values), max(values)] for name, values in seconds.items()},
        "tokens_per_second": {name: num_tokens / value for name, value in medians.items()},
        "model_flops_utilisation": {name: flops / value / peak if peak else None for name, value in medians.items()},
        "kl_to_cross_entropy": medians["kl"] / medians["cross_entropy"],
        "kl_to_cross_entropy_in_later_epochs": medians["kl_later_epochs"] / medians["cross_entropy"],
        "peak_memory_mib": memory_mib(device),
        "logits": _measure_logits(engine, num_tokens // 2, shape, device, dtype) if device.type == "cuda" else None,
    }


def _make_student(shape: dict[str, Any], dtype: str, pack_tokens: int, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(max_position_embeddings=pack_tokens + PROMPT_TOKENS, **shape)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        with torch.device(device):
            AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(Path(folder))
        return load_student(folder, RANK, RANK, 0, dtype).to(device)


def _rows(count: int, row_tokens: int, vocabulary: int) -> list[EncodedRow]:
    half = row_tokens // 2
    tokens = torch.randint(vocabulary, (count, row_tokens), generator=torch.Generator().manual_seed(0)).tolist()
    return [EncodedRow(f"r{index}", row[:half], row[half:]) for index, row in enumerate(tokens)]


def _with_teacher(row: EncodedRow) -> EncodedRow:
    return EncodedRow(row.id, row.prompt_tokens, row.response_tokens, teacher_tokens=row.prompt_tokens)


def _time(call: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _measure_logits(engine: Any, count: int, shape: dict[str, Any], device: torch.device, dtype: str) -> dict[str, Any]:
    """Return the most memory that a loss of so many positions takes, by chunks and with all logits at once."""
    targets_N = torch.randint(shape["vocab_size"], (count,), device=device)
    found = {}
    with open_head(engine) as head:
        arms = {
            "chunks": lambda hidden: chunked_sums(hidden, head, score_tokens(targets_N))[0].backward(),
            "at_once": lambda hidden: F.cross_entropy(head.logits(hidden), targets_N, reduction="sum").backward(),
        }
        for name, arm in arms.items():
            hidden_NH = torch.randn(count, shape["hidden_size"], device=device, dtype=getattr(torch, dtype))
            hidden_NH.requires_grad_()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            arm(hidden_NH)
            found[f"{name}_mib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return {**found, "share": found["chunks_mib"] / found["at_once_mib"]}


if __name__ == "__main__":
    main()
