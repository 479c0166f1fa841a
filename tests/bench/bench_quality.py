"""How close a student comes to its prompted teacher, and how far it drifts elsewhere: cross-entropy against KL.

    python -m tests.bench.bench_quality OUT [--rows 45 90 180 360] [--seeds 0 1 2] [--steps 100]
        [--learning-rate 4e-4] [--cells 1]

The task is jobs/configs/triage.toml with the demo model. Its own base with P answers, at temperature 1, by plain
transformers; both losses take the same answers, the same steps, order and rank. OUT keeps what is done: answers, one
JSON a cell and a cell's checkpoints, so the same command goes on where it stopped, and two may run side by side once
the answers are there (`--cells 0` makes them). All that OUT holds is printed, also of other rates and `--retain`.

Printed for each loss and number of rows, over the seeds: the share of KL(teacher with P || student) that is closed on
held-out answers, the share of valid greedy answers, and the drift: KL(base || student) on the base's answers to prompts
that have nothing to do with the task, none of which retain_fraction's are.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from jobs.task import load
from jobs.train import check_model
from raydistill.core.lr import get_lr
from raydistill.core.models import resolve_model
from raydistill.core.prompts import load_prompt, teacher_messages
from raydistill.evaluation.checks import is_valid
from raydistill.evaluation.config import EvaluateConfig
from raydistill.evaluation.metrics import gap_closed
from raydistill.queries.read import read_queries
from raydistill.queries.split import split_queries
from raydistill.renderers import get_renderer
from raydistill.scoring.arms import open_arm, shared_prefix
from raydistill.scoring.logprobs import kl_per_token
from raydistill.scoring.model import load_model
from raydistill.training.batches import EncodedRow, plan_steps
from raydistill.training.config import TrainConfig
from tests.bench.machine import describe_machine
from tests.loopback import free_port
from tests.processes import ROOT

TASK = ROOT / "jobs" / "configs" / "triage.toml"
MAX_TOKENS = 96
ANSWERED_AT_ONCE = 16
ELSEWHERE = (
    "What is the capital of Norway?",
    "How many hours are there in a week?",
    "Write one sentence about the desert.",
    "What does a plumber do?",
    "Name three animals that can fly.",
    "Translate into German: I would like a coffee.",
    "Explain what a rainbow is.",
    "Give me an idea for a birthday present.",
    "Write a Python function that returns the larger of two numbers.",
    "Who was Marie Curie?",
    "What is the difference between a river and a lake?",
    "How do I make a cup of tea?",
)


def main() -> None:
    """Run the cells that are missing and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[45, 90, 180, 360])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=["cross_entropy", "kl"])
    parser.add_argument("--retain", type=float, nargs="+", default=[0.0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=None, help="default: the task's")
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--cells", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = _Bench(options)
    cells = itertools.product(options.rows, options.seeds, options.retain, options.losses)
    missing = [cell for cell in cells if not bench.file(*cell).exists()]
    for cell in missing[: options.cells]:
        bench.run(*cell)
    found = [json.loads(file.read_text()) for file in sorted(options.out.glob("cell-*.json"))]
    print(json.dumps({"machine": describe_machine(), "summary": _summarise(found), "cells": found}, indent=2))


def _summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("gap_closed", "valid", "drift_nats", "seconds")
    keys = ("rows", "steps", "batch_size", "learning_rate", "retain", "loss")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[key] for key in keys), []).append(cell)
    return [
        dict(zip(keys, group, strict=True))
        | {"seeds": len(own)}
        | {name: round(statistics.mean(cell[name] for cell in own), 4) for name in names}
        | {"gap_closed_of_each": sorted(round(cell["gap_closed"], 4) for cell in own)}
        for group, own in sorted(groups.items())
    ]


class _Bench:
    """The task, its answers, and a cell's training and evaluation."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        options.out.mkdir(parents=True, exist_ok=True)
        tables = {"train": TrainConfig, "evaluate": EvaluateConfig}
        task, sections = load([str(TASK)], tables, "train")
        assert task is not None and isinstance(sections["train"], TrainConfig)
        assert isinstance(sections["evaluate"], EvaluateConfig)
        self._model_dir = resolve_model(task.student_model)
        rate = options.learning_rate or sections["train"].learning_rate or get_lr(self._model_dir)
        self._config = sections["train"].model_copy(update={"learning_rate": rate})
        self._check = sections["evaluate"].check
        self._student = check_model(self._config)
        self._renderer = get_renderer("chat", self._student.tokenizer)
        prompt = load_prompt(task.prompt)
        train, held_out = split_queries(read_queries(task.queries))
        queries = [*train[: max(options.rows)], *held_out[: options.held_out]]
        if len(train) < max(options.rows):
            raise SystemExit(f"--rows: the task has {len(train)} queries that are not held out.")
        self._num_train = max(options.rows)
        self._bare = [self._encode(query.messages) for query in queries]
        self._with_p = [self._encode(teacher_messages(prompt, query.messages)) for query in queries]
        self._answers = self._kept("answers.json", self._with_p, sample=True)
        self._elsewhere = [self._encode([{"role": "user", "content": text}]) for text in ELSEWHERE]
        self._base_answers = self._kept("elsewhere.json", self._elsewhere, sample=False)

    def _encode(self, messages: list[Any]) -> list[int]:
        return self._renderer.build_generation_prompt(messages).to_ints()

    def _kept(self, name: str, prompts: list[list[int]], sample: bool) -> list[list[int]]:
        """Return the base's answers, made once: what is asked later on is answered and added."""
        file = self._options.out / name
        there = {tuple(prompt): answer for prompt, answer in json.loads(file.read_text())} if file.exists() else {}
        asked = [prompt for prompt in prompts if tuple(prompt) not in there]
        if asked:
            model = load_model(self._model_dir, dtype=torch.bfloat16)
            for first in range(0, len(asked), ANSWERED_AT_ONCE):
                part = asked[first : first + ANSWERED_AT_ONCE]
                torch.manual_seed(first + len(there))
                there |= zip(
                    map(tuple, part), _answer(model, part, self._renderer.get_stop_sequences(), sample), strict=True
                )
                file.write_text(json.dumps([[list(prompt), answer] for prompt, answer in there.items()]))
        return [there[tuple(prompt)] for prompt in prompts]

    def file(self, num_rows: int, seed: int, retain: float, loss: str) -> Path:
        """Return where a cell's result is kept."""
        options = self._options
        steps = f"steps{options.steps}x{options.batch_size}-rate{self._config.learning_rate}"
        name = f"{loss}-rows{num_rows}-{steps}-retain{retain}-seed{seed}"
        return options.out / f"cell-{name}.json"

    def run(self, num_rows: int, seed: int, retain: float, loss: str) -> None:
        """Train and evaluate one cell and keep its result."""
        file = self.file(num_rows, seed, retain, loss)
        log_dir = self._options.out / file.stem.replace("cell-", "run-")
        started = time.monotonic()
        self._train(log_dir, num_rows, seed, retain, loss)
        seconds = sum(line["train/step_seconds"] for line in _metrics(log_dir) if "train/step_seconds" in line)
        found = {"loss": loss, "rows": num_rows, "seed": seed, "retain": retain, "steps": self._options.steps}
        found |= {"batch_size": self._options.batch_size, "learning_rate": self._config.learning_rate}
        found |= {**self._evaluate(log_dir / "adapter"), "seconds": seconds}
        file.write_text(json.dumps({**found, "wall_seconds": round(time.monotonic() - started, 1)}))

    def _train(self, log_dir: Path, num_rows: int, seed: int, retain: float, loss: str) -> None:
        """Train by the package's own loop, in this process and without Ray."""
        from jobs.teaching import make_generic_rows
        from raydistill.training.fit import _collect, choose_dtype, make_job
        from raydistill.training.loop import train
        from raydistill.training.rowfile import write_rows
        from raydistill.training.steps import Setting

        changes = {"loss": loss, "seed": seed, "batch_size": self._options.batch_size, "retain_fraction": retain}
        config = self._config.model_copy(update={**changes, "zero_stage": 0, "num_workers": 1})
        prefix = shared_prefix(self._with_p[:num_rows])
        rows = [
            EncodedRow(f"r{index}", self._bare[index], self._answers[index], self._with_p[index][len(prefix) :])
            for index in range(num_rows)
        ]
        if loss == "cross_entropy":
            prefix, rows = [], [EncodedRow(row.id, row.prompt_tokens, row.response_tokens) for row in rows]
        generic = make_generic_rows(self._student, "chat") if retain else []
        write_rows(str(log_dir), [*rows, *generic], [])
        epochs = -(-self._options.steps * config.batch_size // num_rows)
        plan = plan_steps(num_rows, config.batch_size, epochs, self._options.steps, seed)
        plan = dataclasses.replace(plan, num_generic=len(generic), retain_fraction=retain)
        job = make_job(config, plan, self._model_dir, choose_dtype(config, False), str(log_dir), prefix)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "WORLD_SIZE": "1"}
        os.environ["LOCAL_RANK"] = "0"
        torch.distributed.init_process_group("gloo", rank=0, world_size=1)
        try:
            train(job, Setting(0, 1, torch.device("cpu"), job.dtype, objective=job.objective))
        finally:
            torch.distributed.destroy_process_group()
        _collect(str(log_dir))

    def _evaluate(self, adapter_dir: Path) -> dict[str, float]:
        """Return what a student comes to; what the base does on the same rows is reckoned once."""
        model = load_model(self._model_dir, adapter_dir)
        held_out = slice(self._num_train, None)
        responses = self._answers[held_out]
        target = open_arm(model, self._with_p[held_out], adapted=False)
        bare = self._bare[held_out]
        file = self._options.out / f"base-{self._options.held_out}.json"
        arms = {"student": open_arm(model, bare)}
        if not file.exists():
            arms["base"] = open_arm(model, bare, adapted=False)
        kl = kl_per_token(target, arms, responses)
        sums = {name: [float(row.double().sum()) for row in rows] for name, rows in kl.items()}
        if "base" in sums:
            whole = file.with_suffix(f".{os.getpid()}")
            whole.write_text(json.dumps(sums["base"]))
            whole.replace(file)
        sums["base"] = json.loads(file.read_text())
        num_tokens = sum(map(len, responses))
        elsewhere = {"student": open_arm(model, self._elsewhere)}
        drift = kl_per_token(open_arm(model, self._elsewhere, adapted=False), elsewhere, self._base_answers)["student"]
        answers = _answer(model, bare, self._renderer.get_stop_sequences(), sample=False)
        read = [self._renderer.parse_response(answer) for answer in answers]
        valid = [is_valid(str(message["content"]), ended, self._check) for message, ended in read]
        return {
            "gap_closed": gap_closed(sums["base"], sums["student"], range(len(responses)))[0],
            "kl_nats": sum(sums["student"]) / num_tokens,
            "base_kl_nats": sum(sums["base"]) / num_tokens,
            "valid": sum(valid) / len(valid),
            "drift_nats": float(torch.cat(drift).mean()),
            "drift_worst_nats": max(float(row.mean()) for row in drift),
        }


def _metrics(log_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text().splitlines()]


@torch.inference_mode()
def _answer(model: Any, prompts: list[list[int]], stop: list[int], sample: bool) -> list[list[int]]:
    """Return completions with their stop token; what the prompts share is computed once."""
    prefix = shared_prefix(prompts)[: min(map(len, prompts)) - 1]
    cache = model(input_ids=torch.tensor([prefix]), use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(prompts))
    width = max(map(len, prompts)) - len(prefix)
    pads = [width - (len(prompt) - len(prefix)) for prompt in prompts]
    rows = [prefix + [stop[0]] * pad + prompt[len(prefix) :] for prompt, pad in zip(prompts, pads, strict=True)]
    mask = [[1] * len(prefix) + [0] * pad + [1] * (width - pad) for pad in pads]
    output = model.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        past_key_values=cache,
        do_sample=sample,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=stop,
        pad_token_id=stop[0],
    )
    answers = output[:, len(rows[0]) :].tolist()
    ends = [next((place for place, token in enumerate(answer) if token in stop), MAX_TOKENS) for answer in answers]
    return [answer[: end + 1] for answer, end in zip(answers, ends, strict=True)]


if __name__ == "__main__":
    main()
