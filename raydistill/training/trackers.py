"""Where metrics go besides metrics.jsonl: Ray's Prometheus metrics always, others by name where they are installed."""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from raydistill.core import storage
from raydistill.core.errors import ConfigError
from raydistill.core.uris import is_remote, join

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}  # by name in log_to
PROJECT = "raydistill"


class Tracker(Protocol):
    """Somewhere metrics go."""

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Take the numbers of a step."""
        ...

    def close(self) -> None:
        """Write what is held back."""
        ...


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        ConfigError: names the packages to install.
    """
    missing = [PACKAGES[name] for name in names if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        raise ConfigError(
            f"log_to: {', '.join(missing)} is not installed here: pip install {' '.join(missing)}, or leave it out."
        )


def open_trackers(names: Sequence[str], log_uri: str, run: str, config: dict[str, Any]) -> list[Tracker]:
    """Return the trackers of a run.

    Args:
        names: of log_to.
        log_uri: the run's folder; TensorBoard's files go to tensorboard/ in it.
        run: the run's name there; the same one goes on in it.
        config: all keys, for people to read.

    Raises:
        ConfigError: one of them cannot be reached as it is set up here.
    """
    makers = {
        "tensorboard": lambda: _TensorBoard(log_uri),
        "wandb": lambda: _WandB(run, config),
        "mlflow": lambda: _MLflow(run, config),
    }
    trackers: list[Tracker] = [_Prometheus(run)]
    for name in names:
        try:
            trackers.append(makers[name]())
        except Exception as error:  # each package has errors of its own
            raise ConfigError(f"log_to: {name} cannot be opened: {error}. Set it up, or leave it out.") from error
    return trackers


class _Prometheus:
    """Ray's own metrics: the node's agent exports them for Prometheus as ray_raydistill_train_loss_nats and so on."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}

    def add(self, step: int, numbers: dict[str, float]) -> None:
        from ray.util.metrics import Gauge

        for key, value in {"train/step": step, **numbers}.items():
            if key not in self._gauges:
                name = f"raydistill_{key.replace('/', '_')}"
                self._gauges[key] = Gauge(name, description=f"{key} of a training run", tag_keys=("run",))
            self._gauges[key].set(value, tags={"run": self._run})

    def close(self) -> None:
        """Nothing is held back."""


class _TensorBoard:
    def __init__(self, log_uri: str) -> None:
        from tensorboardX import SummaryWriter

        self._uri = join(log_uri, "tensorboard")
        self._temporary = tempfile.TemporaryDirectory() if is_remote(log_uri) else None
        self._folder = self._temporary.name if self._temporary else self._uri
        self._writer = SummaryWriter(self._folder)

    def add(self, step: int, numbers: dict[str, float]) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()
        if self._temporary:
            storage.upload_dir(Path(self._folder), self._uri)
            self._temporary.cleanup()


class _WandB:
    def __init__(self, run: str, config: dict[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - optional

        self._run = wandb.init(project=PROJECT, id=run, name=run, resume="allow", config=config)

    def add(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run: str, config: dict[str, Any]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports] - optional

        self._mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        before = mlflow.search_runs(
            experiment_names=[PROJECT],
            filter_string=f'attributes.run_name = "{run}"',
            max_results=1,
            output_format="list",
        )
        if before:
            mlflow.start_run(run_id=before[0].info.run_id)
            return
        mlflow.start_run(run_name=run)
        mlflow.log_params(config)  # once: it refuses another value, and a run may go on with other num_workers

    def add(self, step: int, numbers: dict[str, float]) -> None:
        self._mlflow.log_metrics(numbers, step=step)

    def close(self) -> None:
        self._mlflow.end_run()
