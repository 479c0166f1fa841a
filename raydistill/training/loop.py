"""What one worker does, from the last whole checkpoint or from the start to the last step.

Nothing here knows Ray: the workers need only be members of one torch process group.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from raydistill.core.errors import DivergenceError, TrainingError
from raydistill.core.models import resolve_model
from raydistill.training.batches import EncodedRow, group_rows, rows_of_step
from raydistill.training.checkpoint import (
    Weights,
    gather_adapter,
    load_best,
    load_moments,
    load_weights,
    save_checkpoint,
)
from raydistill.training.fitting import explain_shortage, is_shortage
from raydistill.training.job import Job
from raydistill.training.kernels import add_kernels
from raydistill.training.model import check_packing, checkpoint_activations, load_student
from raydistill.training.rowfile import read_rows
from raydistill.training.rundir import MetricsLog, write_failure
from raydistill.training.saved import (
    BEST,
    State,
    delete_checkpoint,
    fetch_checkpoint,
    find_checkpoint,
    publish_checkpoint,
)
from raydistill.training.steps import Setting, apply_step, backward_step, find_not_finite, idle_step, validate
from raydistill.training.teacher import Memory, check_teacher, open_prefix
from raydistill.training.usage import FLOPS_A_PARAMETER_AND_TOKEN, count_parameters, memory_mib, peak_flops
from raydistill.training.zero import clip_gradients, gradient_norm, start_engine

CHECKED_ROWS = 3  # of the first step, for the check that packing is sound
NAMED_ROWS = 20  # in the message of a loss that is not finite


def train(job: Job, setting: Setting) -> None:
    """Train from the last whole checkpoint, or from the start, to the end; every worker calls it with the same job.

    A loss that is not finite would be so again: it is left in the run's folder for the driver, and nothing is raised,
    which would only make Ray Train try again.

    Raises:
        TrainingError: memory is short; the message says what would need less.
    """
    try:
        _Run(job, setting).go()
    except DivergenceError as error:
        if setting.rank == 0:
            write_failure(job.log_uri, str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise TrainingError(explain_shortage(job, setting)) from error


def pick_checked(rows: Sequence[EncodedRow], setting: Setting) -> list[EncodedRow]:
    """Return the first rows that one pack of the training may hold; more at once may be more than memory holds."""
    return group_rows(rows[: setting.micro_batch_size or CHECKED_ROWS], None, setting.pack_tokens)[0]


class _Run:
    """A run on this worker: its engine, how far it is, and on the first worker its best adapter and metrics."""

    def __init__(self, job: Job, setting: Setting) -> None:
        self._job, self._setting = job, setting
        self._rows, self._held_out = read_rows(job.log_uri)
        self._state, self._best = State(), None
        self._engine, resumed = self._start()
        self._open_teacher()
        self._log = MetricsLog(job.log_uri, self._state.step) if setting.rank == 0 else None
        self._resumed = resumed | ({"run/liger": True} if self._has_kernels else {})

    def go(self) -> None:
        """Do all steps that are left; the metrics of those that are done are written however it ends."""
        try:
            self._go()
        finally:
            if self._log is not None:
                self._log.write()

    def _go(self) -> None:
        job = self._job
        if self._state.step == 0:
            self._add({"step": 0, **self._resumed, **self._evaluate(0)})
            self._resumed = {}
        while self._state.step < job.plan.num_steps and not self._state.stopped:
            step = self._state.step + 1
            is_last = step == job.plan.num_steps
            line = self._step(step) | self._resumed
            self._resumed = {}
            if is_last or step % job.rhythm.eval_every == 0:
                try:
                    line |= self._evaluate(step)
                except DivergenceError:
                    self._add(line)  # its loss and gradients led there
                    raise
            loss = line.get("validation/loss_nats")
            self._state = self._state.after(step, loss, job.rhythm.patience)
            self._keep_best(loss)
            is_saved = is_last or self._state.stopped or step % job.rhythm.checkpoint_every == 0
            self._add(line, now=is_saved)
            if is_saved:
                self._save()

    def _start(self) -> tuple[Any, dict[str, Any]]:
        """Return the engine, and what the next line of metrics says of a checkpoint that it goes on from."""
        job, setting = self._job, self._setting
        model_dir = job.model_dir if Path(job.model_dir).is_dir() else resolve_model(job.base_model)  # another node
        lora = job.lora
        model = load_student(model_dir, lora.rank, lora.alpha, job.plan.seed, job.dtype, lora.targets)
        if job.gradient_checkpointing:
            checkpoint_activations(model)
        self._flops_a_token = FLOPS_A_PARAMETER_AND_TOKEN * count_parameters(model)
        self._peak_flops = peak_flops(setting.device, job.dtype)
        name, damaged = self._agree(self._find_checkpoint() if setting.rank == 0 else None)
        if name is None:
            engine = self._make_engine(model)
            rows = [self._rows[index] for index in rows_of_step(job.plan, 0)]
            check_packing(engine, pick_checked(rows, setting), job.dtype, setting.device)
            return engine, {"run/damaged_checkpoints": damaged} if damaged else {}
        with fetch_checkpoint(job.log_uri, name) as folder:
            self._state = load_weights(model, folder)
            engine = self._make_engine(model)
            idle_step(engine, self._rows[0], setting)
            load_moments(engine, self._state.step, folder)
            if setting.rank == 0:
                self._best = load_best(folder, self._state)
        return engine, {
            "run/resumed_from": name,
            "run/workers": setting.num_workers,
            "run/damaged_checkpoints": damaged,
        }

    def _find_checkpoint(self) -> tuple[str | None, list[str]]:
        """Return what the run goes on from; damaged ones go, because they would count among those that are kept."""
        name, damaged = find_checkpoint(self._job.log_uri)
        for other in damaged:
            delete_checkpoint(self._job.log_uri, other)
        return name, damaged

    def _open_teacher(self) -> None:
        """Let P's shared prefix be computed and checked, where rows have a teacher."""
        job, setting = self._job, self._setting
        taught = self._rows.first_taught(CHECKED_ROWS)
        if taught:
            prefix = open_prefix(self._engine, job.teacher_prefix, job.dtype, setting.device)
            checked = pick_checked(taught, setting)
            check_teacher(self._engine, checked, job.teacher_prefix, prefix, job.dtype)
            memory = Memory() if job.engine.zero_stage < 3 else None
            self._setting = dataclasses.replace(setting, prefix=prefix, memory=memory)

    def _make_engine(self, model: Any) -> Any:
        engine, on_gpu = self._job.engine, self._setting.device.type == "cuda"
        started = start_engine(
            model, engine.zero_stage, self._job.schedule.peak, on_gpu, engine.max_grad_norm, engine.offload
        )
        self._has_kernels = add_kernels(started, self._rows[0], self._job.dtype, self._setting.device)
        return started

    def _agree(self, found: Any) -> Any:
        """Return the first worker's value on every worker."""
        values = [found]
        dist.broadcast_object_list(values, src=0, device=self._setting.device)
        return values[0]

    def _step(self, step: int) -> dict[str, Any]:
        """Do a step, counted from 1, and return its line of metrics.

        Raises:
            DivergenceError: the loss or the gradients are not finite; the weights may be damaged.
        """
        start = time.monotonic()
        job, engine = self._job, self._engine
        rows = [self._rows[index] for index in rows_of_step(job.plan, step - 1)]
        rate = job.schedule.rate_at(step - 1)
        try:
            means = backward_step(engine, rows, self._setting)
        except TrainingError as error:
            raise DivergenceError(_locate(step, str(error), rows)) from error
        norm = clip_gradients(engine, job.engine.max_grad_norm)
        apply_step(engine, rate)
        norm = gradient_norm(engine) if norm is None else norm
        if not math.isfinite(norm):
            raise DivergenceError(_locate(step, f"The norm of the gradients became {norm}.", rows))
        seconds = time.monotonic() - start
        line = {
            "step": step,
            **means.to_metrics("train"),
            "train/learning_rate": rate,
            "train/gradient_norm": norm,
            "train/completion_tokens": means.num_tokens,
            "train/completion_tokens_per_second": means.num_tokens / seconds,
            "train/step_seconds": seconds,
            "train/memory_mib": round(memory_mib(self._setting.device), 1),
        }
        if self._peak_flops is not None:
            flops = self._flops_a_token * sum(row.num_tokens for row in rows)
            line["train/model_flops_utilisation"] = flops / seconds / (self._peak_flops * self._setting.num_workers)
        return line

    def _evaluate(self, step: int) -> dict[str, float]:
        if not self._held_out:
            return {}
        batch_size = self._job.plan.batch_size
        means = validate(self._engine, self._held_out, batch_size, self._setting)
        if not math.isfinite(means.loss):
            rows = find_not_finite(self._engine, self._held_out, batch_size, self._setting, NAMED_ROWS)
            what = f"The held-out loss became {means.loss}: set a lower learning_rate, or dtype=float32."
            raise DivergenceError(_locate(step, what, rows))
        return means.to_metrics("validation")

    def _keep_best(self, held_out_loss: float | None) -> None:
        """Hold the adapter of the best evaluation so far: a checkpoint may come later than it, or never."""
        if held_out_loss is None or self._state.best_step != self._state.step:
            return
        best: Weights = gather_adapter(self._engine)
        self._best = {name: tensor.clone() for name, tensor in best.items()} if self._setting.rank == 0 else None

    def _save(self) -> None:
        state = self._state
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if self._setting.rank == 0 else None
            best = self._best if state.best_folder == BEST else None
            save_checkpoint(self._engine, state, folder, self._job.base_model, best)
            if folder is not None:
                publish_checkpoint(folder, self._job.log_uri, state.step)

    def _add(self, line: dict[str, Any], now: bool = False) -> None:
        if self._log is None:
            return
        self._log.add(line)
        if now:
            self._log.write()


def _locate(step: int, what: str, rows: Sequence[EncodedRow]) -> str:
    ids = ", ".join(row.id for row in rows[:NAMED_ROWS])
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f"Step {step}: {what} Its examples are {ids}{more}."
