"""A Ray cluster of two nodes, an object store behind a gate, and a driver: each of them can be killed."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from jobs.data_config import CreateDataConfig
from tests.chaos.gate import Gate, open_gate
from tests.moto_bucket import open_bucket
from tests.processes import ROOT, command_of, descendants

MEMORY = 100 * 2**20


@dataclasses.dataclass
class Arena:
    """What runs happen in, one after another.

    Attributes:
        cluster: of Ray; its first node holds the control store and the driver.
        gate: in front of the object store.
        bucket: an empty one.
        folder: for logs, and what the control store keeps.
        teacher: "hash", whose answers can be foretold, or "vllm".
        away_seconds: that the object store is away.
    """

    cluster: Cluster
    gate: Gate
    bucket: str
    folder: Path
    teacher: str
    away_seconds: float
    config: CreateDataConfig | None = None
    driver: subprocess.Popen[bytes] | None = None
    _asked_before: int = 0

    def begin(self, config: CreateDataConfig) -> None:
        """Prepare another run."""
        self.config, self.driver = config, None
        self._asked_before = self._count_lines()

    def start_driver(self) -> None:
        """Run the command, for the first time or again."""
        assert self.config is not None
        arguments = [self.config.model_dump_json(), self.teacher, str(self._log)]
        with (self.folder / "driver.log").open("ab") as output:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", *arguments],
                cwd=ROOT,
                env={
                    **os.environ,
                    **_endpoint(self.gate),
                    "RAY_ADDRESS": str(self.cluster.address),
                    "PYTHONPATH": str(ROOT),
                },
                stdout=output,
                stderr=output,
            )

    def num_asked(self) -> int:
        """Return how many rows the teacher was asked in this run."""
        return self._count_lines() - self._asked_before

    @property
    def _log(self) -> Path:
        """One line for each row that the teacher was asked."""
        return self.folder / "asked"

    def _count_lines(self) -> int:
        return self._log.read_bytes().count(b"\n") if self._log.exists() else 0

    # The faults: each says whether there was something to strike.

    def kill_driver(self) -> bool:
        """Kill the driver."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        return True

    def kill_worker(self) -> bool:
        """Kill one of the actors that ask."""
        return _kill_one(self._processes("MapWorker(MapBatches(AskTeacher))"))

    def kill_replica(self) -> bool:
        """Kill one of the teacher's replicas."""
        return _kill_one(self._processes(f"ServeReplica:{self.teacher}:engine"))

    def kill_engine(self) -> bool:
        """Kill the process in which vLLM computes, below a replica that lives."""
        return _kill_one(self._processes("EngineCore"))

    def kill_node(self) -> bool:
        """Kill the second node with all that is on it; another one takes its place."""
        for node in list(self.cluster.worker_nodes):
            self.cluster.remove_node(node, allow_graceful=False)
        _add_node(self.cluster, self.gate)
        return True

    def kill_control_store(self) -> bool:
        """Kill Ray's control store, and start it again with what it kept."""
        head: Any = self.cluster.head_node
        head.kill_gcs_server()
        head.start_gcs_server()
        return True

    def shut_store(self) -> bool:
        """Have the object store be away for a while."""
        self.gate.shut(self.away_seconds)
        return True

    def _processes(self, name: str) -> list[int]:
        """Return the ids of this cluster's worker processes with such a name."""
        nodes = [self.cluster.head_node, *self.cluster.worker_nodes]
        raylets = [process.process.pid for node in nodes for process in node.all_processes["raylet"]]
        return [pid for raylet in raylets for pid in descendants(raylet) if name in command_of(pid)]


def _endpoint(gate: Gate) -> dict[str, str]:
    """Return what makes a process reach the object store through the gate; this one, with the reader, goes past it."""
    return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}"}


def _add_node(cluster: Cluster, gate: Gate) -> None:
    """Add a node, whose workers inherit its environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _endpoint(gate).items():
            patch.setenv(name, value)
        cluster.add_node(num_cpus=6, object_store_memory=MEMORY, include_dashboard=False)


def _kill_one(pids: list[int]) -> bool:
    if pids:
        os.kill(min(pids), signal.SIGKILL)
    return bool(pids)


@contextlib.contextmanager
def open_arena(folder: Path, teacher: str = "hash", away_seconds: float = 5) -> Iterator[Arena]:
    """Give an arena; nothing of it runs any more at the end.

    Args:
        folder: for logs, and what the control store keeps.
        teacher: see Arena.
        away_seconds: see Arena. `make soak` has 30; 5 outlast boto3's own attempts too (seen in the actors' logs), and
            make test is shorter.
    """
    store = folder / "control-store"
    settings = {
        # What a control store that comes back goes on from; without it a dead one is the end of the cluster.
        "gcs_storage": "rocksdb",
        "gcs_storage_path": str(store),
        "raylet_client_num_connect_attempts": "10",
        "worker_maximum_startup_concurrency": "8",
        "num_workers_soft_limit": "1",
        # A node that is killed is given up after 5 s, not after 25.
        "health_check_period_ms": "1000",
        "health_check_timeout_ms": "5000",
    }
    with pytest.MonkeyPatch.context() as patch, open_bucket("chaos") as bucket:
        for name, value in settings.items():
            patch.setenv(f"RAY_{name}", value)
        store.mkdir(parents=True)
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        cluster = Cluster()
        with open_gate(port) as gate:
            try:
                _add_node(cluster, gate)  # the head
                _add_node(cluster, gate)
                arena = Arena(cluster, gate, bucket, folder, teacher, away_seconds)
                try:
                    yield arena
                finally:
                    if arena.driver is not None and arena.driver.poll() is None:
                        arena.kill_driver()
            finally:
                cluster.shutdown()
