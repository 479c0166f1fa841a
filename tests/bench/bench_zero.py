"""What workers and ZeRO stages cost: tokens a second of one and two workers, of plain data parallel and ZeRO.

    python -m tests.bench.bench_zero [--repeats 5] [--steps 4] [--tokens 256 1024 4096] [--hidden 512] [--layers 8]

One thread a worker on both sides, the same 32 examples a step, a random Llama. Within a repeat every arm runs once, so
that what else the machine does meets all of them; an interval is of the mean over repeats, 95 %, by Student's t. Plain
data parallel is stage 0: gradients all-reduced, every worker its own AdamW. ZeRO 3 keeps no weight whole (persistence
threshold 0) and is measured against stage 0 at so many tokens a worker and step.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from raydistill.training.batches import EncodedRow
from tests.bench.machine import describe_machine
from tests.training.workers import run_workers

EXAMPLES = 32
VOCABULARY = 4096
RANK = 32
RATE = 1e-4
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}  # by degrees of freedom


def main() -> None:
    """Run every arm in every repeat and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--pack-tokens", type=int, default=4096)  # ZeRO 3 gathers all weights once a pack
    parser.add_argument("--row-tokens", type=int, default=96)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory(prefix="bench-zero-") as name:
        folder = Path(name)
        _write_model(folder / "model", options["hidden"], options["layers"])
        files = {num_workers: folder / f"workers{num_workers}.json" for num_workers in (1, 2)}
        found: dict[str, list[float]] = {}
        for _ in range(options["repeats"]):
            for num_workers, file in files.items():
                run_workers(_measure_arms, num_workers, str(folder / "model"), str(file), options)
                for arm, rate in json.loads(file.read_text()).items():
                    found.setdefault(arm, []).append(rate)
    print(json.dumps({"machine": describe_machine(), "options": options, **_summarise(found, options)}, indent=2))


def _write_model(folder: Path, hidden: int, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 192),
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def _rows(count: int, row_tokens: int) -> list[EncodedRow]:
    """Rows of one length, half of it response: every worker has the same to do."""
    half = row_tokens // 2
    tokens = torch.randint(VOCABULARY, (count, row_tokens), generator=torch.Generator().manual_seed(0)).tolist()
    return [EncodedRow(f"r{index}", row[:half], row[half:]) for index, row in enumerate(tokens)]


def _measure_arms(rank: int, num_workers: int, model_dir: str, out: str, options: dict[str, Any]) -> None:
    """Leave tokens a second of each arm in a file: `workers-stage` with 32 examples, `stage@tokens` for ZeRO 3."""
    from raydistill.training.model import load_student
    from raydistill.training.steps import Setting, apply_step, backward_step
    from raydistill.training.zero import start_engine

    setting = Setting(rank, num_workers, torch.device("cpu"), options["dtype"], pack_tokens=options["pack_tokens"])
    rates = {}
    examples = _rows(EXAMPLES, options["row_tokens"])
    for stage in (0, 1, 2, 3) if num_workers == 2 else (0,):
        model = load_student(model_dir, RANK, RANK, 0, options["dtype"])
        engine = start_engine(model, stage, RATE, on_gpu=False)

        def measure(rows: list[EncodedRow], engine: Any = engine) -> float:
            seconds = []
            for step in range(options["steps"] + 1):  # the first makes kernels and buffers
                torch.distributed.barrier()
                start = time.perf_counter()
                backward_step(engine, rows, setting)
                apply_step(engine, RATE)
                torch.distributed.barrier()
                seconds += [time.perf_counter() - start] if step else []
            return sum(row.num_tokens for row in rows) / statistics.median(seconds)

        if stage < 3:
            rates[f"{num_workers}-{stage}"] = measure(examples)
        if num_workers == 2 and stage in (0, 3):
            for tokens in options["tokens"]:
                count = max(2, round(num_workers * tokens / options["row_tokens"]))
                rates[f"{stage}@{tokens}"] = measure(_rows(count, options["row_tokens"]))
        engine.destroy()
        torch.distributed.barrier()
    if rank == 0:
        Path(out).write_text(json.dumps(rates))


def _summarise(found: dict[str, list[float]], options: dict[str, Any]) -> dict[str, Any]:
    def ratio(arm: str, to: str, inverse: bool = False) -> dict[str, float]:
        pairs = zip(found[arm], found[to], strict=True)
        return _interval([b / a if inverse else a / b for a, b in pairs])

    return {
        "tokens_per_second": {arm: _interval(rates) for arm, rates in found.items()},
        "two_workers_to_one": ratio("2-0", "1-0"),
        "zero1_time_to_data_parallel": ratio("2-1", "2-0", inverse=True),
        "zero2_time_to_data_parallel": ratio("2-2", "2-0", inverse=True),
        "zero3_time_to_data_parallel_by_tokens_a_worker_and_step": {
            tokens: ratio(f"3@{tokens}", f"0@{tokens}", inverse=True) for tokens in options["tokens"]
        },
        "repeats": found,
    }


def _interval(values: list[float]) -> dict[str, float]:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": round(mean, 4)}
    freedom = len(values) - 1
    half = T_95.get(freedom, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


if __name__ == "__main__":
    main()
