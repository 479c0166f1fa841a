"""What tests share: a tiny model and adapter, a Ray cluster, and one distilled world for the integration tests."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from jobs.runtime import ClusterConfig, connect, disconnect
from tests.loopback import free_port
from tests.tiny import make_tiny_model, make_tiny_tokenizer
from tests.tiny_adapter import make_tiny_adapter
from tests.tiny_task import write_tiny_task

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Threads that wait for each other spin: with two processes on two cores a pass of a second took a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # one idle process for each logical CPU, at once

# An example that waits for a core is no failure.
PATIENT = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("shared machine", **PATIENT)
hypothesis.settings.load_profile("shared machine")

ENGINES = ("cluster", "client", "engine", "jobs")  # folders whose tests hold engines
# Those that hold a Ray cluster and mostly wait, or train: each folder's in one process, beside the engines.
CLUSTERS = ("jobs/data/", "chaos/", "training/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """tests/cluster comes first: its two clusters take half the time where the world is not up beside them."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/cluster/"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep all that computes much in one process, where there are two; other clusters, and the rest, are for the other.

    By the path, since pytest-xdist's own groups are lost on pytest 9.2: it writes them into an attribute that is gone.
    """
    from xdist.scheduler import LoadScopeScheduling

    class EnginesInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            for place in CLUSTERS:
                if path.startswith(f"tests/{place}"):
                    return place
            return "engines" if path.split("/")[1] in ENGINES else path

    return EnginesInOneProcess(config, log)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """The tiny tokenizer alone, only to be read."""
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The tiny model, only to be read: a test that damages one makes its own."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapter_dir(model_dir, tmp_path_factory):
    """An adapter on the tiny model, only to be read."""
    return make_tiny_adapter(model_dir, tmp_path_factory.mktemp("adapters") / "tiny")


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster for one file: the world's where that is up, else one that ends with the file.

    It ends with the file, because the world needs a larger one and would take over what it finds. The value says
    whether it is the file's own.
    """
    import ray

    config = ClusterConfig.model_validate({"object_store_mib": 100})
    ours = not ray.is_initialized()
    try:
        connect(config)
        yield ours
    finally:
        if ours:
            disconnect(config)


@dataclasses.dataclass(frozen=True)
class World:
    """A finished run of jobs.distill on a tiny model."""

    task_file: Path
    settings: Any  # jobs.distill.Settings
    report: dict[str, Any]
    url: str
    base_dir: str


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    from jobs import distill

    port = free_port()
    task_file = write_tiny_task(tmp_path_factory.mktemp("world"), port)
    settings = distill.read_settings([str(task_file)])
    try:
        report = distill.run(settings)
        yield World(task_file, settings, report, f"http://127.0.0.1:{port}", settings.task.student_model)
    finally:
        disconnect(settings.cluster)
