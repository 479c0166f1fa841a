"""A training in which a worker, the driver and a node are killed ends as one that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from raydistill.core.errors import ConflictError
from raydistill.training.fit import fit
from raydistill.training.rundir import read_metrics
from raydistill.training.saved import ADAPTER_WEIGHTS, fetch_checkpoint, find_checkpoint, read_state
from tests.processes import ROOT
from tests.training.fit_driver import HELD_OUT, STEPS, TRAINED, make_config

WAIT_SECONDS = 300


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of its own in other processes: room for two workers on its head and for one on a second node."""
    from ray.cluster_utils import Cluster

    settings = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    handler = signal.getsignal(signal.SIGTERM)
    system = {"metrics_report_interval_ms": 500}
    cluster = Cluster(
        initialize_head=True, connect=False, head_node_args={"num_cpus": 2, "_system_config": system, **settings}
    )
    node = cluster.add_node(num_cpus=1, **settings)
    signal.signal(signal.SIGTERM, handler)  # a node sets one of its own, for the rest of the session
    try:
        yield cluster, node
    finally:
        cluster.shutdown()


class _Driver:
    """The command of a user, in a process of its own."""

    def __init__(self, address: str, model_dir: str, folder: Path, *arguments: str) -> None:
        self._folder = folder
        self._out = (folder.parent / "driver.out").open("a")
        exported = folder.parent / "exported.txt"
        command = [sys.executable, "-m", "tests.training.fit_driver", address, model_dir, str(folder), str(exported)]
        # Ray Train learns only after up to 20 s that a node is gone, and until then waits so long for its resources.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
        self.process = subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, stderr=self._out)

    def wait_for_step(self, step: int) -> None:
        """Return as soon as the metrics show a step."""
        deadline = time.monotonic() + WAIT_SECONDS
        while max((line["step"] for line in read_metrics(str(self._folder))), default=0) < step:
            assert self.process.poll() is None, Path(self._out.name).read_text()
            assert time.monotonic() < deadline, f"step {step} was not reached"
            time.sleep(0.05)

    def wait_for_resume(self, times: int) -> None:
        """Return as soon as the metrics tell of so many resumptions."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(_resumptions(self._folder)) < times:
            assert self.process.poll() is None, Path(self._out.name).read_text()
            assert time.monotonic() < deadline, f"it did not go on for the time number {times}"
            time.sleep(0.05)

    def wait(self) -> None:
        """Return when it has ended well."""
        assert self.process.wait(WAIT_SECONDS) == 0, Path(self._out.name).read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _resumptions(folder: Path) -> list[dict]:
    return [line for line in read_metrics(str(folder)) if "run/resumed_from" in line]


def _kill_a_worker() -> None:
    """Kill one of this test's own Ray Train workers."""
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            process.kill()
            return
    pytest.fail("there is no worker")


@pytest.fixture(scope="module")
def disturbed(two_nodes, model_dir, tmp_path_factory):
    """The folder of a run in which everything died once."""
    cluster, node = two_nodes
    folder = tmp_path_factory.mktemp("faults") / "disturbed"
    driver = _Driver(cluster.address, model_dir, folder, "num_workers=[2, 3]")
    driver.wait_for_step(15)
    _kill_a_worker()
    driver.wait_for_resume(1)
    driver.wait_for_step(35)
    driver.kill()
    driver = _Driver(cluster.address, model_dir, folder, "num_workers=[1, 3]", "zero_stage=3")
    driver.wait_for_resume(2)
    driver.wait_for_step(65)
    cluster.remove_node(node, allow_graceful=False)
    driver.wait()
    return folder


def test_curve_is_that_of_an_undisturbed_run_when_everything_dies_once(disturbed, gloo_results):
    calm = gloo_results.jobs["undisturbed"].log_uri
    lines = read_metrics(str(disturbed))
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    for key in ("train/loss_nats", "validation/loss_nats"):
        expected = [line[key] for line in read_metrics(calm) if key in line]
        assert len(expected) == (STEPS if key.startswith("train") else 13)
        assert [line[key] for line in lines if key in line] == pytest.approx(expected, abs=1e-5)
    name, _ = find_checkpoint(calm)
    with fetch_checkpoint(calm, name) as checkpoint:
        before = load_file(checkpoint / read_state(checkpoint).best_folder / ADAPTER_WEIGHTS)
    after = load_file(disturbed / "adapter" / ADAPTER_WEIGHTS)
    assert set(before) == set(after)
    for key, weight in before.items():
        assert_close(after[key], weight, atol=1e-4, rtol=1e-3)


def test_metrics_tell_where_the_run_went_on_and_on_how_many_workers(disturbed):
    told = [(line["run/resumed_from"][:11], line["run/workers"]) for line in _resumptions(disturbed)]
    assert [workers for _, workers in told] == [3, 3, 2]
    assert [name for name, _ in told] == sorted(name for name, _ in told) and told[0][0] >= "step-000010"


def test_run_leaves_curve_config_and_result(disturbed):
    lines = read_metrics(str(disturbed))
    assert lines[-1]["train/loss_nats"] < 0.5 * lines[1]["train/loss_nats"]
    assert (disturbed / "loss.png").read_bytes().startswith(b"\x89PNG")
    resolved = json.loads((disturbed / "config.json").read_text())["config"]
    assert resolved["dtype"] == "float32" and resolved["num_steps"] == STEPS
    result = json.loads((disturbed / "result.json").read_text())
    held_out = {line["step"]: line["validation/loss_nats"] for line in lines if "validation/loss_nats" in line}
    assert result["steps"] == STEPS and result["validation_loss_nats"] == held_out[result["best_step"]]
    assert result["validation_loss_nats"] == min(held_out.values()) < result["validation_loss_nats_before"]


def test_metrics_are_exported_for_prometheus(disturbed):
    text = (disturbed.parent / "exported.txt").read_text()
    line = next(line for line in text.splitlines() if line.startswith("ray_raydistill_train_loss_nats{"))
    assert 'run="' in line and float(line.rpartition(" ")[2]) > 0


def test_finished_run_is_not_done_again_and_another_one_is_refused_in_its_folder(disturbed, model_dir):
    folder = str(disturbed)
    again = fit(make_config(model_dir, folder, num_workers=1), TRAINED, HELD_OUT, model_dir)
    assert again.metrics["steps"] == STEPS and again.num_modules == 14
    with pytest.raises(ConflictError, match="another learning_rate, rows"):
        fit(make_config(model_dir, folder, learning_rate=0.1), TRAINED[1:], HELD_OUT, model_dir)
