"""Train an adapter: check the input, resolve the settings, let Ray Train's workers do it, collect the result."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import ConfigError, TrainingError
from raydistill.core.lr import get_lr
from raydistill.core.models import model_revision
from raydistill.core.uris import absolute, join
from raydistill.training.batches import EncodedRow, Plan, plan_steps, rows_digest
from raydistill.training.checks import advise, check_rows
from raydistill.training.config import TrainConfig
from raydistill.training.curve import draw_curve
from raydistill.training.group import train_on_workers
from raydistill.training.job import Engine, Job, Lora, Objective, Rhythm
from raydistill.training.rowfile import write_rows
from raydistill.training.rundir import check_run_dir, claim_run, read_metrics, read_result, write_result
from raydistill.training.saved import ADAPTER, ADAPTER_WEIGHTS, fetch_checkpoint, find_checkpoint, read_state
from raydistill.training.schedule import Schedule
from raydistill.training.shape import check_targets, read_shape
from raydistill.training.trackers import check_trackers, open_trackers
from raydistill.training.watch import Progress, watch

FREE_KEYS = {  # they change where and how fast, not what comes out
    "data_file",
    "output_dir",
    "log_path",
    "num_workers",
    "use_gpu",
    "threads_per_worker",
    "placement",
    "zero_stage",
    "offload",
    "micro_batch_size",
    "pack_tokens",
    "gradient_checkpointing",
    "checkpoint_every",
    "max_failures",
    "log_to",
    "merge",
    "allow_other_template",
    "too_long",
    "max_length",
    "raw_fraction",
    "renderer",
}  # fmt: skip - the last four decide the rows, whose digest counts
TAIL_STEPS = 10  # whose mean is the training loss that a version records


@dataclass(frozen=True)
class FitResult:
    """A trained adapter.

    Attributes:
        adapter_dir: folder or URI in PEFT's format.
        num_modules: linear layers that carry the adapter.
        metrics: train_loss_nats, validation_loss_nats (before and of these weights), best_step, steps, and what else
            a version records.
    """

    adapter_dir: str
    num_modules: int
    metrics: dict[str, Any]


def decide(
    config: TrainConfig, rows: Sequence[EncodedRow], model_dir: str, dtype: str, teacher_prefix: Sequence[int] = ()
) -> dict[str, Any]:
    """Return what decides the outcome of a run; its digest is the run's id."""
    keys = {key: value for key, value in config.model_dump().items() if key not in FREE_KEYS}
    digest = rows_digest(rows, teacher_prefix)
    return {**keys, "dtype": dtype, "rows": digest, "model_revision": model_revision(model_dir)}


def wants_gpu(config: TrainConfig) -> bool:
    """Return whether the workers get a GPU each, on the connected cluster."""
    import ray

    if config.use_gpu is not None:
        return config.use_gpu
    return ray.cluster_resources().get("GPU", 0) >= config.min_workers


def choose_dtype(config: TrainConfig, use_gpu: bool) -> str:
    """Return the dtype of the frozen base: bfloat16 where there are units for it, on GPUs and on most newer CPUs.

    SmolLM2-135M, 8 rows of 90 tokens, two one-thread workers with avx512_bf16: 2.4 s a step against 3.4 in float32,
    1.7 GB a worker against 2.5, losses of the first steps within 2 % (measured on two cores that others used too).
    """
    return config.dtype or ("bfloat16" if use_gpu or has_bfloat16_units() else "float32")


def has_bfloat16_units(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU multiplies in bfloat16 by itself; elsewhere torch emulates it, slower than float32."""
    if not cpu_info.exists():
        return False
    flags = set(cpu_info.read_text(encoding="utf-8", errors="replace").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def fit(
    config: TrainConfig,
    train_rows: Sequence[EncodedRow],
    validation_rows: Sequence[EncodedRow],
    model_dir: str,
    on_progress: Progress | None = None,
    teacher_prefix: Sequence[int] = (),
) -> FitResult:
    """Train, or go on with the run in config.log_path; Ray must be connected.

    Args:
        config: log_path must be set.
        train_rows: prompts and responses as token ids of the student's tokenizer; generic ones stand last.
        validation_rows: held out: their loss says which weights are the best; may be empty.
        model_dir: local folder of config.student_model.
        on_progress: called in a thread of its own, every few seconds.
        teacher_prefix: token ids that stand before the teacher_tokens of all rows.

    Raises:
        DatasetError: the rows cannot be trained on.
        ConfigError: a package of log_to is not installed, or lora_targets names no layer of the student.
        ConflictError: log_path holds another run, or something else.
        TrainingError: it failed; the same call goes on from the last checkpoint.
    """
    if config.log_path is None:
        raise ConfigError("log_path: set a folder or s3:// for checkpoints and metrics.")
    check_rows(config, train_rows)
    check_trackers(config.log_to)
    log_uri = absolute(config.log_path)
    check_run_dir(log_uri)
    num_generic = sum(row.is_generic for row in train_rows)
    num_rows = len(train_rows) - num_generic
    plan = plan_steps(num_rows, config.batch_size, config.num_epochs, config.max_steps, config.seed)
    plan = dataclasses.replace(plan, num_generic=num_generic, retain_fraction=config.retain_fraction)
    shape = read_shape(model_dir)
    check_targets(config.lora_targets, shape)
    advise(config, train_rows, plan, shape)
    use_gpu = wants_gpu(config)
    job = make_job(config, plan, model_dir, choose_dtype(config, use_gpu), log_uri, teacher_prefix)
    decides = decide(config, [*train_rows, *validation_rows], model_dir, job.dtype, teacher_prefix)
    resolved = {
        **config.model_dump(),
        "learning_rate": job.schedule.peak,
        "dtype": job.dtype,
        "num_steps": plan.num_steps,
    }
    claim_run(log_uri, decides, resolved)
    result = read_result(log_uri)
    if result is None:
        write_rows(log_uri, train_rows, validation_rows)
        run_name = "-".join(log_uri.rsplit("/", 2)[-2:])  # of a run id and its model's name, where log_path is ours
        trackers = open_trackers(config.log_to, log_uri, run_name, resolved)
        with watch(log_uri, plan.num_steps, on_progress, trackers):
            train_on_workers(config, job, use_gpu)
        result = _collect(log_uri)
    return FitResult(join(log_uri, ADAPTER), result.pop("num_modules"), result)


def make_job(
    config: TrainConfig, plan: Plan, model_dir: str, dtype: str, log_uri: str, teacher_prefix: Sequence[int] = ()
) -> Job:
    """Return what the workers must know."""
    rate = config.learning_rate or get_lr(model_dir)
    return Job(
        model_dir=model_dir,
        base_model=config.student_model,
        log_uri=log_uri,
        plan=plan,
        dtype=dtype,
        lora=Lora(
            config.lora_rank,
            config.lora_alpha or config.lora_rank,
            tuple(config.lora_targets) if config.lora_targets else None,
        ),
        schedule=Schedule(rate, config.schedule, min(config.warmup_steps, plan.num_steps - 1), plan.num_steps),
        engine=Engine(
            config.zero_stage,
            config.offload,
            config.max_grad_norm,
            config.micro_batch_size,
            config.pack_tokens,
            config.threads_per_worker,
        ),
        rhythm=Rhythm(config.eval_every, config.patience, config.checkpoint_every),
        objective=Objective(config.kl_weight, config.kl_temperature),
        teacher_prefix=tuple(teacher_prefix),
        gradient_checkpointing=config.gradient_checkpointing,
    )


def _collect(log_uri: str) -> dict[str, Any]:
    """Copy the best adapter of the last checkpoint to its place, draw the curve, and mark the run as finished."""
    from safetensors.numpy import load

    name, _ = find_checkpoint(log_uri)
    if name is None:
        raise TrainingError(f"{log_uri}: the run ended without a checkpoint. Start it again.")
    lines = read_metrics(log_uri)
    storage.write_bytes(join(log_uri, "loss.png"), draw_curve(lines))
    with fetch_checkpoint(log_uri, name) as folder:
        state = read_state(folder)
        best = folder / (state.best_folder or ADAPTER)
        names = load((best / ADAPTER_WEIGHTS).read_bytes())
        storage.upload_dir(Path(best), join(log_uri, ADAPTER))
    before = next((line["validation/loss_nats"] for line in lines if "validation/loss_nats" in line), None)
    steps = [line for line in lines if "train/loss_nats" in line]
    tail = steps[-TAIL_STEPS:]
    result = {
        "num_modules": len({name.rpartition(".lora_")[0] for name in names}),
        "steps": state.step,
        "stopped_early": state.stopped,
        "best_step": state.best_step or state.step,
        "train_loss_nats": sum(line["train/loss_nats"] for line in tail) / len(tail),
        "validation_loss_nats": state.best_loss_nats,
        "validation_loss_nats_before": before,
        "completion_tokens": sum(line["train/completion_tokens"] for line in steps),
        "seconds": sum(line["train/step_seconds"] for line in steps),
    }
    write_result(log_uri, result)
    return result
