"""Real gloo processes around DeepSpeed, without Ray: what each worker computes is left in files for the tests."""

import dataclasses
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing
from safetensors.torch import save_file

from raydistill.training.batches import EncodedRow, plan_steps, rows_of_step
from raydistill.training.job import Objective
from tests.loopback import free_port

SEED, RANK, ALPHA, RATE = 3, 4, 8, 0.01
STEPS, SAVED_AT = 4, 2
PREFIX, OBJECTIVE = tuple(range(100, 140)), Objective(kl_weight=0.7, kl_temperature=1.0)
STAGES = {1: (0, 3), 2: (0, 1, 2, 3), 3: (2, 3)}  # by number of workers


def make_rows(count: int = 16) -> list[EncodedRow]:
    """Rows of very different length: responses of 1 to 60 tokens."""
    rows = []
    for index in range(count):
        prompt = [(7 * index + 3 * place) % 380 for place in range(1 + 5 * (index % 5))]
        response = [(11 * index + place * place) % 380 for place in range([1, 60, 4, 33, 2, 17][index % 6])]
        rows.append(EncodedRow(f"row{index}", prompt, response))
    return rows


def make_taught_rows() -> list[EncodedRow]:
    """Rows of every kind: behind P's prefix, generic, with recorded soft labels, and without any teacher."""
    kinds = []
    for index, row in enumerate(make_rows(12)):
        if index % 4 == 0:
            kinds.append(row)
        elif index == 6:
            kinds.append(dataclasses.replace(row, teacher_tokens=row.prompt_tokens, is_generic=True))
        elif index == 9:
            ids = [[(5 * index + place + entry * 31) % 380 for entry in range(3)] for place in row.response_tokens]
            logprobs = [[-0.7, -1.5, -3.0]] * len(row.response_tokens)
            labels = (np.array(ids, dtype=np.int32), np.array(logprobs, dtype=np.float16))
            kinds.append(dataclasses.replace(row, top_ids=labels[0], top_logprobs=labels[1]))
        else:
            kinds.append(dataclasses.replace(row, teacher_tokens=[77, *row.prompt_tokens]))
    return kinds


def make_student(model_dir: str):
    """A student whose B is not zero, so that A has gradients too."""
    from raydistill.training.model import load_student

    model = load_student(model_dir, RANK, ALPHA, SEED, "float32")
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def run_workers(function, num_workers: int, *args) -> None:
    """Call function(rank, num_workers, *args) in so many processes with a process group, and wait for all."""
    torch.multiprocessing.spawn(_enter, (num_workers, free_port(), function, args), nprocs=num_workers)


def _enter(rank: int, num_workers: int, port: int, function, args) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_workers),
    }
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=num_workers)
    try:
        function(rank, num_workers, *args)
    finally:
        torch.distributed.destroy_process_group()


def train_all_stages(rank: int, num_workers: int, model_dir: str, out: str, resume_from: str | None) -> None:
    """For each ZeRO stage: the first step's gradients, the losses and the last weights, and a resumed run's."""
    for stage in STAGES[num_workers]:
        folder = Path(out) / f"workers{num_workers}-stage{stage}"
        folder.mkdir(parents=True, exist_ok=True)
        _train(rank, num_workers, model_dir, stage, folder)
        _teach(rank, num_workers, model_dir, stage, folder)
        resumed = Path(resume_from) if resume_from else folder / "checkpoint"
        _resume(rank, num_workers, model_dir, stage, resumed, folder)


def _setting(rank: int, num_workers: int):
    from raydistill.training.steps import Setting

    return Setting(rank, num_workers, torch.device("cpu"), "float32", micro_batch_size=2)


def _plan():
    return plan_steps(len(make_rows()), batch_size=7, num_epochs=2, max_steps=STEPS, seed=SEED)


def _do_steps(engine, setting, first: int, last: int, on_gradients=None) -> list[float]:
    from raydistill.training.schedule import Schedule
    from raydistill.training.steps import apply_step, backward_step

    rows, losses = make_rows(), []
    for step in range(first, last):
        means = backward_step(engine, [rows[index] for index in rows_of_step(_plan(), step)], setting)
        losses.append(means.loss)
        if on_gradients and step == first:
            on_gradients()
        apply_step(engine, Schedule(RATE, "linear", 0, STEPS).rate_at(step))
    return losses


def _train(rank: int, num_workers: int, model_dir: str, stage: int, folder: Path) -> None:
    from deepspeed.utils import safe_get_full_grad

    from raydistill.training.checkpoint import gather_weights, save_checkpoint
    from raydistill.training.saved import State
    from raydistill.training.steps import validate
    from raydistill.training.zero import start_engine

    engine = start_engine(make_student(model_dir), stage, RATE, on_gpu=False)
    setting = _setting(rank, num_workers)

    def keep_gradients() -> None:
        trained = [(name, value) for name, value in engine.module.named_parameters() if value.requires_grad]
        gradients = {name: safe_get_full_grad(value).detach().clone() for name, value in trained}
        if rank == 0:
            save_file(gradients, folder / "gradients.safetensors")

    before = validate(engine, make_rows(5), 3, setting)
    losses = _do_steps(engine, setting, 0, SAVED_AT, keep_gradients)
    saved_in = folder / "checkpoint" if rank == 0 else None
    save_checkpoint(engine, State(SAVED_AT), saved_in, "base/as-written", None)
    losses += _do_steps(engine, setting, SAVED_AT, STEPS)
    weights = gather_weights(engine)
    if rank == 0:
        save_file(weights, folder / "weights.safetensors")
        (folder / "losses.json").write_text(json.dumps({"losses": losses, "validation": before.loss}))
    engine.destroy()
    torch.distributed.barrier()


def _teach(rank: int, num_workers: int, model_dir: str, stage: int, folder: Path) -> None:
    """A step and a validation on rows with teachers of every kind."""
    from deepspeed.utils import safe_get_full_grad

    from raydistill.training.steps import backward_step, validate
    from raydistill.training.teacher import Memory, open_prefix
    from raydistill.training.zero import start_engine

    engine = start_engine(make_student(model_dir), stage, RATE, on_gpu=False)
    setting = dataclasses.replace(_setting(rank, num_workers), objective=OBJECTIVE)
    memory = Memory() if stage < 3 else None  # as the loop has it: the step uses what the validation has seen
    prefix = open_prefix(engine, PREFIX, "float32", setting.device)
    setting = dataclasses.replace(setting, prefix=prefix, memory=memory)
    before = validate(engine, make_taught_rows(), 5, setting)
    means = backward_step(engine, make_taught_rows(), setting)
    trained = [(name, value) for name, value in engine.module.named_parameters() if value.requires_grad]
    gradients = {name: safe_get_full_grad(value).detach().clone() for name, value in trained}
    if rank == 0:
        save_file(gradients, folder / "taught.safetensors")
        found = {"step": dataclasses.asdict(means), "validation": dataclasses.asdict(before)}
        (folder / "taught.json").write_text(json.dumps(found))
    engine.destroy()
    torch.distributed.barrier()


def _resume(rank: int, num_workers: int, model_dir: str, stage: int, checkpoint: Path, folder: Path) -> None:
    from raydistill.training.checkpoint import gather_weights, load_moments, load_weights
    from raydistill.training.model import load_student
    from raydistill.training.steps import idle_step
    from raydistill.training.zero import start_engine

    model = load_student(model_dir, RANK, ALPHA, SEED + 1, "float32")
    step = load_weights(model, checkpoint).step
    engine = start_engine(model, stage, RATE, on_gpu=False)
    setting = _setting(rank, num_workers)
    idle_step(engine, make_rows()[0], setting)
    load_moments(engine, step, checkpoint)
    losses = _do_steps(engine, setting, step, STEPS)
    weights = gather_weights(engine)
    if rank == 0:
        save_file(weights, folder / "resumed.safetensors")
        (folder / "resumed.json").write_text(json.dumps({"losses": losses, "step": step}))
    engine.destroy()
    torch.distributed.barrier()
