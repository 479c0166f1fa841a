"""A training step's speed and memory against plain loops that pad every batch to its longest row.

    python -m tests.bench.bench_train [--repeats 3] [--steps 4] [--sides ours ours_kl plain trl] [--model FOLDER]

Sides: `ours` is what jobs.train does on one worker (DeepSpeed, packed rows, the head on completion tokens, in chunks),
`ours_kl` the same with the teacher's pass behind a P of --prefix tokens, the other `ours_` are of lora_variants.py.
`plain` is Hugging Face and PEFT with padding, in bfloat16 by autocast, `trl` TRL's SFTTrainer with PEFT and its own
defaults (pip install 'raydistill[bench]').
All have the same rows in each step: prompts without P, completions of log-normal length. Each turn is a process of its
own, in turns and in a random order; real tokens are those of rows, not of padding. Memory is the peak of the resident
set in the steps beyond that after loading. Losses are compared in float32, step by step.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from raydistill.core.models import resolve_model
from raydistill.training.batches import EncodedRow
from tests.bench.lora_variants import VARIANTS, apply_variant
from tests.bench.machine import describe_machine
from tests.loopback import free_port
from tests.processes import ROOT

SIDES = ("ours", "ours_kl", *(f"ours_{variant}" for variant in VARIANTS), "plain", "trl")
RANK, RATE = 32, 1e-4
WARM_UP_STEPS = 1


def main() -> None:
    """Run the turns and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prefix", type=int, default=500)
    parser.add_argument("--median-tokens", type=float, default=60)
    parser.add_argument("--spread", type=float, default=0.8)
    parser.add_argument("--model", default="demo://smollm2-135m-instruct")
    parser.add_argument("--sides", nargs="+", default=["ours", "ours_kl", "plain"], choices=SIDES)
    parser.add_argument("--no-losses", action="store_true", help="leave the comparison in float32 out")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, dtype = options.one
        print(json.dumps(_measure(side, dtype, options)))
        return
    chooser, turns = random.Random(0), []
    for _ in range(options.repeats):
        for side in chooser.sample(options.sides, len(options.sides)):
            turns.append(_run(side, "bfloat16"))
            print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    losses = {}
    if not options.no_losses and {"ours", "plain"} <= set(options.sides):
        losses = {side: _run(side, "float32")["losses"] for side in ("ours", "plain")}
    print(json.dumps({"machine": describe_machine(), "options": vars(options),
                      "summary": _summarise(turns, losses), "turns": turns}, indent=2))  # fmt: skip


def _run(side: str, dtype: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.bench_train", *sys.argv[1:], "--one", side, dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def _summarise(turns: list[dict[str, Any]], losses: dict[str, list[float]]) -> dict[str, Any]:
    sides = sorted({turn["side"] for turn in turns})
    own = {side: [turn for turn in turns if turn["side"] == side] for side in sides}
    rates = {side: [turn["real_tokens_per_second"] for turn in own[side]] for side in sides}
    found: dict[str, Any] = {
        "real_tokens_per_second": {side: round(statistics.median(rates[side]), 1) for side in sides},
        "peak_mib_beyond_weights": {
            side: round(statistics.median(turn["peak_mib"] for turn in own[side])) for side in sides
        },
    }
    for side in sides:
        if side != "ours" and "ours" in rates:
            ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates[side], strict=True)]
            found[f"ours_to_{side}"] = [round(ratio, 2) for ratio in sorted(ratios)]
    if losses:
        pairs = zip(losses["ours"], losses["plain"], strict=True)
        found["largest_loss_difference_nats"] = max(abs(one - other) for one, other in pairs)
    return found


def _make_rows(options: argparse.Namespace, vocab_size: int) -> list[EncodedRow]:
    """Rows of random tokens; a teacher's row has the same query a little differently wrapped."""
    chooser = random.Random(0)
    rows = []
    for index in range((options.steps + WARM_UP_STEPS) * options.batch_size):
        length = min(600, max(4, round(chooser.lognormvariate(0, options.spread) * options.median_tokens)))
        prompt, response = (chooser.choices(range(5, vocab_size), k=size) for size in (chooser.randint(20, 60), length))
        rows.append(EncodedRow(f"r{index}", prompt, response, teacher_tokens=prompt[4:]))
    return rows


def _measure(side: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Do the steps of one side in this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    model_dir = resolve_model(options.model)
    vocab_size = json.loads((Path(model_dir) / "config.json").read_text())["vocab_size"]
    rows = _make_rows(options, vocab_size)
    steps = [rows[first : first + options.batch_size] for first in range(0, len(rows), options.batch_size)]
    if side == "trl":
        return _trl(model_dir, steps, options)
    with _our_step(model_dir, dtype, side, options) if side != "plain" else _plain_step(model_dir, dtype) as step:
        loaded = _resident_mib()
        losses, seconds = [], []
        with _peak() as peak:
            for batch in steps:
                start = time.monotonic()
                losses.append(step(batch))
                seconds.append(time.monotonic() - start)
    return _turn(side, dtype, steps, seconds, losses, peak[0] - loaded)


def _turn(side: str, dtype: str, steps: list[list[EncodedRow]], seconds: list[float], losses: list[float],
          peak_mib: float) -> dict[str, Any]:  # fmt: skip
    tokens = sum(row.num_tokens for batch in steps[WARM_UP_STEPS:] for row in batch)
    padded = sum(max(row.num_tokens for row in batch) * len(batch) for batch in steps[WARM_UP_STEPS:])
    return {
        "side": side,
        "dtype": dtype,
        "real_tokens_per_second": round(tokens / sum(seconds[WARM_UP_STEPS:]), 1),
        "real_share_when_padded": round(tokens / padded, 3),
        "peak_mib": round(peak_mib),
        "losses": losses,
    }


@contextmanager
def _our_step(
    model_dir: str, dtype: str, side: str, options: argparse.Namespace
) -> Iterator[Callable[[list[EncodedRow]], float]]:
    import dataclasses

    from raydistill.training.model import load_student
    from raydistill.training.steps import Setting, apply_step, backward_step
    from raydistill.training.teacher import open_prefix
    from raydistill.training.zero import start_engine

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    model = load_student(model_dir, RANK, RANK, 0, dtype)
    apply_variant(model, side.removeprefix("ours_"))
    engine = start_engine(model, 0, RATE, on_gpu=False)
    setting, with_teacher = Setting(0, 1, torch.device("cpu"), dtype), side == "ours_kl"
    if with_teacher:
        prefix = open_prefix(engine, [100 + place % 200 for place in range(options.prefix)], dtype, setting.device)
        setting = dataclasses.replace(setting, prefix=prefix)

    def step(batch: list[EncodedRow]) -> float:
        rows = batch if with_teacher else [dataclasses.replace(row, teacher_tokens=None) for row in batch]
        means = backward_step(engine, rows, setting)
        apply_step(engine, RATE)
        return means.loss

    yield step
    torch.distributed.destroy_process_group()


@contextmanager
def _plain_step(model_dir: str, dtype: str) -> Iterator[Callable[[list[EncodedRow]], float]]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from raydistill.training.model import linear_layers
    from raydistill.training.zero import ADAM

    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linear_layers(base), task_type="CAUSAL_LM")
    torch.manual_seed(0)  # the same adapter on the same layers
    model: Any = get_peft_model(base, lora)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=tuple(ADAM["betas"]), eps=ADAM["eps"], weight_decay=0.0)

    def step(batch: list[EncodedRow]) -> float:
        width = max(row.num_tokens for row in batch)
        pads = [width - row.num_tokens for row in batch]
        tokens = [[*row.prompt_tokens, *row.response_tokens, *[0] * pad] for row, pad in zip(batch, pads, strict=True)]
        labels = [
            [-100] * len(row.prompt_tokens) + row.response_tokens + [-100] * pad
            for row, pad in zip(batch, pads, strict=True)
        ]
        mask = [[1] * row.num_tokens + [0] * pad for row, pad in zip(batch, pads, strict=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            inputs = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
            loss = model(**{name: torch.tensor(value) for name, value in inputs.items()}, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    yield step


def _trl(model_dir: str, steps: list[list[EncodedRow]], options: argparse.Namespace) -> dict[str, Any]:
    """Train by TRL with its defaults; only batch size, order, what is written and what the loss is on are set."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports] - of the extra `bench`
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.monotonic())

    rows = [row for batch in steps for row in batch]
    data = Dataset.from_list(
        [
            {
                "input_ids": row.prompt_tokens + row.response_tokens,
                "completion_mask": [0] * len(row.prompt_tokens) + [1] * len(row.response_tokens),
            }
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(folder, per_device_train_batch_size=options.batch_size, num_train_epochs=1,
                           save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
                           completion_only_loss=True)  # fmt: skip
        lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = InOrder(model=model_dir, args=config, train_dataset=data, peft_config=lora, callbacks=[Clock()])
        loaded = _resident_mib()
        start = time.monotonic()
        with _peak() as peak:
            trainer.train()
        resolved = json.loads(json.dumps(trainer.args.to_dict(), default=str))
    seconds = [after - before for before, after in zip([start, *marks], marks, strict=False)]
    return {**_turn("trl", "its own", steps, seconds, [], peak[0] - loaded), "resolved_config": resolved}


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Watch this process's memory and give its peak in MiB."""
    peak, ended = [_resident_mib()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], _resident_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
