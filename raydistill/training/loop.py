"""What one worker of Ray Train does, from a checkpoint or from the start to the last step."""

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from raydistill.training.batches import EncodedRow, Plan, rows_of_step
from raydistill.training.checkpoint import load_moments, load_weights, save_checkpoint
from raydistill.training.model import check_packing, load_student
from raydistill.training.rundir import MetricsLog, read_rows
from raydistill.training.steps import Setting, apply_step, backward_step, idle_step, learning_rate_at, validate
from raydistill.training.zero import start_engine

CHECKED_ROWS = 3  # of the first step, for the check that packing is sound


@dataclass(frozen=True)
class Job:
    """All that a worker must know.

    Attributes:
        model_dir: local folder of the base model.
        base_model: what the adapter's config names as its base.
        log_uri: the run's folder.
        plan: the steps.
        lora: rank and alpha.
        learning_rate: its peak.
        warmup_steps: until the peak.
        dtype: "float32" or "bfloat16".
        micro_batch_size: None for what fits.
        zero_stage: 0 to 3.
        checkpoint_every: steps.
        threads: CPU threads of this worker.
    """

    model_dir: str
    base_model: str
    log_uri: str
    plan: Plan
    lora: tuple[int, int]
    learning_rate: float
    warmup_steps: int
    dtype: str
    micro_batch_size: int | None
    zero_stage: int
    checkpoint_every: int
    threads: int


def run_worker(settings: dict[str, Any]) -> None:
    """Train: Ray Train calls this on every worker with the same {"job": Job}."""
    job: Job = settings["job"]
    setting = _prepare(job)
    train_rows, validation_rows = read_rows(job.log_uri)
    with _last_checkpoint() as folder:
        engine, steps_done = _start(job, setting, train_rows, folder)
    log = MetricsLog(job.log_uri, steps_done) if setting.rank == 0 else None
    if steps_done == 0:
        if job.micro_batch_size != 1:
            first = [train_rows[index] for index in rows_of_step(job.plan, 0)[:CHECKED_ROWS]]
            check_packing(engine, first, job.dtype, setting.device)
        if validation_rows and log:
            log.add({"step": 0})
        _add_validation(engine, validation_rows, job, setting, log, {"step": 0})
    for step in range(steps_done, job.plan.num_steps):
        line = _step(engine, train_rows, job, setting, step)
        is_last = line["step"] == job.plan.num_steps
        if is_last or line["step"] % job.checkpoint_every == 0:
            _add_validation(engine, validation_rows, job, setting, log, line)
            _report(engine, job, setting, line)
        elif log:
            log.add(line)


def _prepare(job: Job) -> Setting:
    """Set up this process: threads, quiet libraries."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)  # DeepSpeed's older names
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    if device.type == "cpu":
        torch.set_num_threads(job.threads)
    context = ray.train.get_context()
    return Setting(
        context.get_world_rank(), context.get_world_size(), device, job.dtype, job.micro_batch_size
    )
