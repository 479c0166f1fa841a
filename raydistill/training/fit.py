"""Train an adapter with Ray Train: workers, retries, checkpoints in the run's folder."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.core import storage
from raydistill.core.errors import ConfigError, DatasetError, TrainingError
from raydistill.core.lr import get_lr
from raydistill.core.models import model_revision
from raydistill.core.uris import absolute, join
from raydistill.training.batches import EncodedRow, plan_steps, rows_digest
from raydistill.training.config import TrainConfig
from raydistill.training.curve import draw_curve
from raydistill.training.job import Job, Objective
from raydistill.training.rundir import claim_run, read_metrics, write_rows
from raydistill.training.worker import run_worker

if TYPE_CHECKING:
    from ray.train import Result

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, Any]], None]  # (steps done, steps in all, the newest line of metrics)

FEW_STEPS = 100  # below, LoRA is seldom trained enough
POLL_SECONDS = 2.0
START_FAILURES = 2  # a worker group gets a minute to start; then it is tried this often again
ADAPTER = "adapter"  # of a checkpoint, and of the run's folder when it is finished
COLLECTIVE_TIMEOUT_SECONDS = 600  # a worker that waits longer for another one fails
FREE_KEYS = {  # they change where and how fast, not what comes out
    "data_file",
    "output_dir",
    "log_path",
    "num_workers",
    "use_gpu",
    "threads_per_worker",
    "placement",
    "zero_stage",
    "micro_batch_size",
    "checkpoint_every",
    "max_failures",
    "max_length",
    "raw_fraction",
    "renderer",
}  # fmt: skip - the last three decide the rows, whose digest counts


@dataclass(frozen=True)
class FitResult:
    """A trained adapter.

    Attributes:
        adapter_dir: folder or URI in PEFT's format.
        num_modules: linear layers that carry the adapter.
        metrics: train_loss_nats, validation_loss_nats (before and after), steps, and what else a version records.
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


def check_rows(config: TrainConfig, rows: Sequence[EncodedRow]) -> None:
    """Refuse rows that cannot be trained on.

    Raises:
        DatasetError: fewer rows than one batch, or a row without prompt or response.
    """
    if len(rows) < config.batch_size:
        raise DatasetError(
            f"{config.data_file} leaves {len(rows)} rows for training, fewer than one batch of {config.batch_size}. "
            "Create more examples or set a smaller batch_size."
        )
    empty = [row.id for row in rows if not row.prompt_tokens or not row.response_tokens]
    if empty:
        raise DatasetError(
            f"{config.data_file}: {len(empty)} rows have no prompt or no response, the first is {empty[0]}."
        )


def wants_gpu(config: TrainConfig) -> bool:
    """Return whether the workers get a GPU each, on the connected cluster."""
    import ray

    if config.use_gpu is not None:
        return config.use_gpu
    return ray.cluster_resources().get("GPU", 0) >= config.num_workers


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
        train_rows: prompts and responses as token ids of the student's tokenizer.
        validation_rows: their loss is measured at each checkpoint; may be empty.
        model_dir: local folder of config.student_model.
        on_progress: called in a thread of its own, every few seconds.
        teacher_prefix: token ids that stand before the teacher_tokens of all rows.

    Raises:
        DatasetError: the rows cannot be trained on.
        ConflictError: log_path holds another run.
        TrainingError: it failed; the same call goes on from the last checkpoint.
    """
    if config.log_path is None:
        raise ConfigError("log_path: set a folder or s3:// for checkpoints and metrics.")
    check_rows(config, [*train_rows])
    use_gpu = wants_gpu(config)
    dtype = choose_dtype(config, use_gpu)
    log_uri = absolute(config.log_path)
    rate = config.learning_rate or get_lr(model_dir)
    plan = plan_steps(len(train_rows), config.batch_size, config.num_epochs, config.max_steps, config.seed)
    if plan.num_steps < FEW_STEPS:
        logger.warning(
            "%d steps are few: LoRA wants %d or more (more num_epochs or examples).", plan.num_steps, FEW_STEPS
        )
    resolved = {**config.model_dump(), "learning_rate": rate, "dtype": dtype, "num_steps": plan.num_steps}
    claim_run(log_uri, decide(config, [*train_rows, *validation_rows], model_dir, dtype, teacher_prefix), resolved)
    write_rows(log_uri, train_rows, validation_rows)

    job = Job(
        model_dir=model_dir,
        base_model=config.student_model,
        log_uri=log_uri,
        plan=plan,
        lora=(config.lora_rank, config.lora_alpha or config.lora_rank),
        learning_rate=rate,
        warmup_steps=min(config.warmup_steps, plan.num_steps - 1),
        dtype=dtype,
        micro_batch_size=config.micro_batch_size,
        zero_stage=config.zero_stage,
        checkpoint_every=config.checkpoint_every,
        threads=config.threads_per_worker,
        objective=Objective(config.kl_weight, config.kl_temperature),
        teacher_prefix=tuple(teacher_prefix),
    )
    if not _is_finished(job):
        with _watch(log_uri, plan.num_steps, on_progress):
            result = _train(config, job, use_gpu)
        _collect(log_uri, result)
    return _describe(log_uri)


def _train(config: TrainConfig, job: Job, use_gpu: bool) -> "Result":
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    filesystem, path = storage.filesystem(job.log_uri)
    parent, _, name = path.rpartition("/")
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=use_gpu,
            placement_strategy=config.placement,
            resources_per_worker={"CPU": config.threads_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_failures, controller_failure_limit=START_FAILURES
            ),
            worker_runtime_env={} if use_gpu else {"env_vars": {"DS_ACCELERATOR": "cpu"}},
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"Training failed: {_first_cause(error)} The same command goes on from the last checkpoint in "
            f"{job.log_uri}."
        ) from error


def _first_cause(error: Any) -> str:
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else getattr(error, "controller_failure", error)
    cause = getattr(cause, "cause", cause)
    return f"{type(cause).__name__}: {str(cause).strip()[:2000]}"


@contextlib.contextmanager
def _watch(log_uri: str, num_steps: int, on_progress: Progress | None) -> Iterator[None]:
    """Read the run's metrics every few seconds while the trainer blocks, and pass the newest line on."""
    stop = threading.Event()

    def poll() -> None:
        last = -1
        while True:
            stopped = stop.wait(POLL_SECONDS)
            lines = read_metrics(log_uri)
            if lines and lines[-1]["step"] != last and on_progress is not None:
                last = lines[-1]["step"]
                on_progress(last, num_steps, lines[-1])
            if stopped:
                return

    thread = threading.Thread(target=poll, daemon=True)
    if on_progress is not None:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if on_progress is not None:
            thread.join(timeout=30)


def _is_finished(job: Job) -> bool:
    """Return whether an earlier call trained to the end and left the adapter in its place."""
    lines = read_metrics(job.log_uri)
    return bool(lines) and lines[-1]["step"] == job.plan.num_steps and storage.exists(_weights_uri(job.log_uri))


def _weights_uri(log_uri: str) -> str:
    return join(log_uri, ADAPTER, "adapter_model.safetensors")


def _collect(log_uri: str, result: "Result") -> None:
    """Draw the curve and copy the last checkpoint's adapter to its place, the weights last."""
    if result.checkpoint is None:
        raise TrainingError(f"{log_uri}: the run ended without a checkpoint. Start it again.")
    storage.write_bytes(join(log_uri, "loss.png"), draw_curve(read_metrics(log_uri)))
    with result.checkpoint.as_directory() as folder:
        storage.upload_dir(Path(folder) / ADAPTER, join(log_uri, ADAPTER))


def _describe(log_uri: str) -> FitResult:
    """Return a finished run's adapter and what its metrics come to."""
    from safetensors.numpy import load

    lines = read_metrics(log_uri)
    validation = [line["validation/loss_nats"] for line in lines if "validation/loss_nats" in line]
    steps = [line for line in lines if "train/loss_nats" in line]
    tail = steps[-10:]
    metrics = {
        "steps": steps[-1]["step"],
        "train_loss_nats": sum(line["train/loss_nats"] for line in tail) / len(tail),
        "validation_loss_nats": validation[-1] if validation else None,
        "validation_loss_nats_before": validation[0] if validation else None,
        "completion_tokens": sum(line["train/completion_tokens"] for line in steps),
        "seconds": sum(line["train/step_seconds"] for line in steps),
    }
    names = load(storage.read_bytes(_weights_uri(log_uri)))
    return FitResult(join(log_uri, ADAPTER), len({name.rpartition(".lora_")[0] for name in names}), metrics)
