"""Workers under Ray Train: started, replaced when they are lost, fewer or more of them as the cluster has room."""

import contextlib
import logging
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import NotFoundError, TrainingError
from raydistill.core.uris import join
from raydistill.training.config import TrainConfig
from raydistill.training.job import Job
from raydistill.training.rundir import take_failure
from raydistill.training.worker import run_worker

START_FAILURES = 2  # a worker group gets a minute to start; then it is tried this often again
COLLECTIVE_TIMEOUT_SECONDS = 600  # a worker that waits longer for another one fails
RAY_FOLDER = "ray"  # Ray Train's own, below the run's; our checkpoints are not there
RAY_RUN = "ray_run.txt"  # Ray Train's name for the latest attempt
CANCEL_SECONDS = 10.0
KILLED_FOR_MEMORY = (
    "A worker that ends without a word was often killed because memory ran out: set micro_batch_size=1, "
    "dtype=bfloat16, a smaller max_length or fewer workers on a machine."
)
logger = logging.getLogger(__name__)


def train_on_workers(config: TrainConfig, job: Job, use_gpu: bool) -> None:
    """Run a job to its end on Ray Train's workers; Ray must be connected.

    Raises:
        TrainingError: the loss is not finite, or more workers were lost than max_failures.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    take_failure(job.log_uri)  # an earlier attempt's
    filesystem, path = storage.filesystem(job.log_uri)
    workers = config.num_workers if isinstance(config.num_workers, int) else (config.min_workers, config.max_workers)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            placement_strategy=config.placement,
            resources_per_worker={"CPU": config.threads_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=RAY_FOLDER,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_failures, controller_failure_limit=START_FAILURES
            ),
            worker_runtime_env={} if use_gpu else {"env_vars": {"DS_ACCELERATOR": "cpu"}},
        ),
    )
    # Ray Train's own handler of Ctrl-C ends the process with status 1 and no word, and stays after training (2.60).
    trainer._register_sigint_handler = lambda controller: None
    _take_over(job.log_uri, trainer.train_run_context.run_id)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"Training failed: {_first_cause(error)} The same command goes on from the last checkpoint in "
            f"{job.log_uri}."
        ) from error
    failure = take_failure(job.log_uri)
    if failure is not None:
        raise TrainingError(f"{failure} The checkpoints before it are kept in {job.log_uri}.")


def _take_over(log_uri: str, ray_run: str) -> None:
    """Give back what an earlier driver of this run has reserved, and leave our own name for the next one.

    Ray Train reserves the workers' resources under a random name and renews that; where a driver was killed, the
    reservation stands for up to 180 s, and an elastic run sees no room for as long (2.60).
    """
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )
    from ray.exceptions import RayError

    uri = join(log_uri, RAY_RUN)
    with contextlib.suppress(NotFoundError):
        lost = storage.read_bytes(uri).decode()
        try:
            coordinator = get_or_create_autoscaling_coordinator()
            ray.get(coordinator.cancel_request.remote(requester_id=f"train-{lost}"), timeout=CANCEL_SECONDS)
        except RayError as error:
            logger.warning("The reservation of an earlier run is left to expire: %s", error)
    storage.write_bytes(uri, ray_run.encode())


def _first_cause(error: Any) -> str:
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    failures = getattr(error, "worker_failures", None)
    causes = list(failures.values()) if failures else [getattr(error, "controller_failure", error)]
    causes = [getattr(cause, "cause", cause) for cause in causes]
    # Where one worker fails, the others fail with it in a collective: what we say ourselves comes first.
    cause = next((cause for cause in causes if isinstance(cause, TrainingError)), causes[0])
    text = f"{type(cause).__name__}: {str(cause).strip()[:2000]}"
    is_lost = isinstance(cause, (ActorDiedError, OutOfMemoryError))
    return f"{text} {KILLED_FOR_MEMORY}" if is_lost else text
