"""What one worker of Ray Train does, from a checkpoint or from the start to the last step."""

import contextlib
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from raydistill.core.models import resolve_model
from raydistill.training.batches import EncodedRow, rows_of_step
from raydistill.training.checkpoint import load_moments, load_weights, save_checkpoint
from raydistill.training.job import Job
from raydistill.training.model import check_packing, load_student
from raydistill.training.rundir import MetricsLog, read_rows
from raydistill.training.steps import Setting, apply_step, backward_step, idle_step, learning_rate_at, validate
from raydistill.training.teacher import check_teacher, open_prefix
from raydistill.training.zero import start_engine

CHECKED_ROWS = 3  # of the first step, for the check that packing is sound


def train(job: Job) -> None:
    """Train from the last checkpoint, or from the start, to the last step; every worker calls it with the same job."""
    setting = _prepare(job)
    train_rows, validation_rows = read_rows(job.log_uri)
    with _last_checkpoint() as folder:
        engine, steps_done = _start(job, setting, train_rows, folder)
    setting = _open_teacher(engine, job, setting, train_rows)
    log = MetricsLog(job.log_uri, steps_done) if setting.rank == 0 else None
    if steps_done == 0:
        _add(log, {"step": 0, **_validation(engine, validation_rows, job, setting)})
    for step in range(steps_done, job.plan.num_steps):
        line = _step(engine, train_rows, job, setting, step)
        is_last = line["step"] == job.plan.num_steps
        if not is_last and line["step"] % job.checkpoint_every:
            _add(log, line)
            continue
        line |= _validation(engine, validation_rows, job, setting)
        _add(log, line, now=True)
        _report(engine, job, setting, line)


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
    ranks = (context.get_world_rank(), context.get_world_size())
    return Setting(*ranks, device, job.dtype, job.micro_batch_size, job.objective)


@contextlib.contextmanager
def _last_checkpoint() -> Iterator[Path | None]:
    """Give the last checkpoint's folder on this node, None at the start of a run."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def _start(job: Job, setting: Setting, rows: Sequence[EncodedRow], folder: Path | None) -> tuple[Any, int]:
    """Return the engine and the steps it has done."""
    model_dir = job.model_dir if Path(job.model_dir).is_dir() else resolve_model(job.base_model)  # another node
    model = load_student(model_dir, *job.lora, job.plan.seed, job.dtype)
    steps_done = load_weights(model, folder) if folder is not None else 0
    engine = start_engine(model, job.zero_stage, job.learning_rate, on_gpu=setting.device.type == "cuda")
    if folder is not None:
        idle_step(engine, rows[0], setting)
        load_moments(engine, steps_done, folder)
    else:
        first = [rows[index] for index in rows_of_step(job.plan, 0)[: job.micro_batch_size or CHECKED_ROWS]]
        check_packing(engine, first, job.dtype, setting.device)
    return engine, steps_done


def _open_teacher(engine: Any, job: Job, setting: Setting, rows: Sequence[EncodedRow]) -> Setting:
    """Return the setting with P's shared prefix computed and checked, where rows have a teacher."""
    taught = [row for row in rows if row.teacher_tokens is not None][:CHECKED_ROWS]
    if not taught:
        return setting
    prefix = open_prefix(engine, job.teacher_prefix, job.dtype, setting.device)
    check_teacher(engine, taught[: job.micro_batch_size], job.teacher_prefix, prefix, job.dtype)
    return dataclasses.replace(setting, prefix=prefix)


def _step(engine: Any, rows: Sequence[EncodedRow], job: Job, setting: Setting, step: int) -> dict[str, Any]:
    """Do a step (counted from 0) and return its line of metrics."""
    start = time.monotonic()
    indices = rows_of_step(job.plan, step)
    rate = learning_rate_at(step, job.plan.num_steps, job.learning_rate, job.warmup_steps)
    means = backward_step(engine, [rows[index] for index in indices], setting)
    apply_step(engine, rate)
    seconds = time.monotonic() - start
    return {
        "step": step + 1,
        **means.to_metrics("train"),
        "train/learning_rate": rate,
        "train/completion_tokens": means.num_tokens,
        "train/completion_tokens_per_second": means.num_tokens / seconds,
        "train/step_seconds": seconds,
    }


def _validation(engine: Any, rows: Sequence[EncodedRow], job: Job, setting: Setting) -> dict[str, float]:
    return validate(engine, rows, job.plan.batch_size, setting).to_metrics("validation") if rows else {}


def _add(log: MetricsLog | None, line: dict[str, Any], now: bool = False) -> None:
    if log is None:
        return
    log.add(line)
    if now:
        log.write()


def _report(engine: Any, job: Job, setting: Setting, line: dict[str, Any]) -> None:
    """Hand a checkpoint to Ray Train; it counts once every worker has reported."""
    step = line["step"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if setting.rank == 0 else None
        save_checkpoint(engine, step, folder, job.base_model)
        checkpoint = ray.train.Checkpoint.from_directory(temporary) if folder is not None else None
        ray.train.report(line, checkpoint=checkpoint, checkpoint_dir_name=f"step-{step:06d}")
