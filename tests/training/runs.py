"""Whole runs of the training loop in gloo processes, without Ray: what each leaves in its folder is for the tests."""

import dataclasses
from pathlib import Path

import torch

from raydistill.training.batches import EncodedRow, plan_steps
from raydistill.training.job import Engine, Job, Lora, Rhythm
from raydistill.training.rowfile import write_rows
from raydistill.training.schedule import Schedule
from tests.training.workers import ALPHA, PREFIX, RANK, SEED, make_rows

STEPS = 12
HELD_OUT = 5
PEAK_FLOPS = 1e9  # that a worker's device is said to have
STAGES = [(0, "none"), (1, "none"), (3, "none")]  # beside stage 2
STAGES += [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
BFLOAT16_STAGES = (0, 1, 2, 3)


def make_job(model_dir: str, log_uri: str, stage: int = 2, offload: str = "none", **changes) -> Job:
    """A run of 12 steps that evaluates every 3 and saves every 4; clipping is at work in each step."""
    rows = make_rows()[HELD_OUT:]
    job = Job(
        model_dir=model_dir,
        base_model="base/as-written",
        log_uri=log_uri,
        plan=plan_steps(len(rows), batch_size=5, num_epochs=6, max_steps=STEPS, seed=SEED),
        dtype="float32",
        lora=Lora(RANK, ALPHA),
        schedule=Schedule(0.003, "cosine", 2, STEPS),
        engine=Engine(stage, offload, max_grad_norm=0.5, micro_batch_size=2, pack_tokens=None, threads=1),
        rhythm=Rhythm(eval_every=3, patience=None, checkpoint_every=4),
    )
    return dataclasses.replace(job, **changes)


def make_jobs(model_dir: str, root: Path) -> dict[str, Job]:
    """Runs by name; those up to the last of STAGES train the same."""

    def make(name: str, **changes) -> Job:
        return make_job(model_dir, str(root / name), **changes)

    jobs = {"calm": make("calm")}
    for stage, offload in STAGES:
        jobs[f"{stage}-{offload}"] = make(f"{stage}-{offload}", stage=stage, offload=offload)
    for stage in BFLOAT16_STAGES:
        jobs[f"bfloat16-{stage}"] = make(f"bfloat16-{stage}", stage=stage, dtype="bfloat16")
    wild = Schedule(0.3, "constant", 0, STEPS)
    jobs["stopped"] = make("stopped", schedule=wild, rhythm=Rhythm(eval_every=1, patience=2, checkpoint_every=50))
    for stage in (0, 2):
        jobs[f"unclipped-{stage}"] = make(f"unclipped-{stage}", engine=Engine(stage, "none", None, 2, None, threads=1))
    jobs["taught"] = make("taught", teacher_prefix=PREFIX)
    endless = Schedule(1e30, "constant", 0, STEPS)
    seldom = Rhythm(eval_every=50, patience=None, checkpoint_every=50)
    jobs["nan"] = make("nan", schedule=endless, rhythm=dataclasses.replace(seldom, checkpoint_every=1))
    jobs["nan-unsaved"] = make("nan-unsaved", schedule=endless, rhythm=seldom)
    jobs["nan-held-out"] = make("nan-held-out", schedule=endless, rhythm=dataclasses.replace(seldom, eval_every=1))
    return jobs


def write_run(job: Job) -> None:
    """Leave the rows where the workers look for them; they have a teacher where the job has P."""
    rows = make_rows()
    if job.teacher_prefix:
        rows = [with_teacher(row) for row in rows]
    write_rows(job.log_uri, rows[HELD_OUT:], rows[:HELD_OUT])


def with_teacher(row: EncodedRow) -> EncodedRow:
    """The row, whose teacher sees P's prefix and one token more before the prompt."""
    return dataclasses.replace(row, teacher_tokens=[77, *row.prompt_tokens])


def train_all(rank: int, num_workers: int, jobs: list[Job]) -> None:
    """Do one run after the other."""
    from raydistill.training import loop
    from raydistill.training.steps import Setting

    loop.peak_flops = lambda *_: PEAK_FLOPS

    for job in jobs:
        setting = Setting(
            rank,
            num_workers,
            torch.device("cpu"),
            job.dtype,
            micro_batch_size=job.engine.micro_batch_size,
            objective=job.objective,
        )
        loop.train(job, setting)
        torch.distributed.barrier()
