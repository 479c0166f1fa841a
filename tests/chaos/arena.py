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
from tests.processes import ROOT

MEMORY = 100 * 2**20


@dataclasses.dataclass
class Arena:
    """What a run happens in.

    Attributes:
        cluster: of Ray; its first node holds the control store and the driver.
        gate: in front of the object store.
        log: one line for each row that the teacher was asked.
    """

    cluster: Cluster
    gate: Gate
    config: CreateDataConfig
    log: Path
    folder: Path
    delay_seconds: float
    driver: subprocess.Popen[bytes] | None = None

    def start_driver(self) -> None:
        """Run the command, for the first time or again."""
        arguments = [self.config.model_dump_json(), str(self.log), str(self.delay_seconds)]
        store = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}"}
        with (self.folder / "driver.log").open("ab") as output:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", *arguments],
                cwd=ROOT,
                env={**os.environ, **store, "RAY_ADDRESS": self.cluster.address, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=output,
            )

    def num_asked(self) -> int:
        """Return how many rows the teacher was asked."""
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    # The faults.

    def kill_driver(self) -> None:
        """Kill the driver."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()

    def kill_worker(self) -> None:
        """Kill one of the actors that ask."""
        _kill_one(self._processes("MapWorker(MapBatches(AskTeacher))"))

    def kill_replica(self) -> None:
        """Kill one of the teacher's replicas."""
        _kill_one(self._processes("ServeReplica:hash:engine"))

    def kill_node(self) -> None:
        """Kill the second node with all that is on it; another one takes its place."""
        for node in list(self.cluster.worker_nodes):
            self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(num_cpus=6, object_store_memory=MEMORY)

    def kill_control_store(self) -> None:
        """Kill Ray's control store, and start it again with what it kept."""
        head: Any = self.cluster.head_node
        head.kill_gcs_server()
        head.start_gcs_server()

    def shut_store(self, seconds: float = 5) -> None:
        """Have the object store be away."""
        self.gate.shut(seconds)

    def _processes(self, name: str) -> list[int]:
        """Return the ids of this cluster's worker processes with such a name."""
        nodes = [self.cluster.head_node, *self.cluster.worker_nodes]
        raylets = [process.process.pid for node in nodes for process in node.all_processes["raylet"]]
        return [pid for raylet in raylets for pid in _descendants(raylet) if name in _command(pid)]


def _kill_one(pids: list[int]) -> None:
    if pids:
        os.kill(min(pids), signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextlib.contextmanager
def open_arena(folder: Path, config: dict[str, Any], delay_seconds: float) -> Iterator[Arena]:
    """Give an arena for one run; nothing of it is left at the end.

    Args:
        folder: for logs, and what the control store keeps.
        config: of create_data, without the output file.
        delay_seconds: that the teacher takes for each row.
    """
    store = folder / "control-store"
    with pytest.MonkeyPatch.context() as patch:
        # What a control store that comes back goes on from; without it a dead one is the end of the cluster.
        patch.setenv("RAY_gcs_storage", "rocksdb")
        patch.setenv("RAY_gcs_storage_path", str(store))
        patch.setenv("RAY_raylet_client_num_connect_attempts", "10")
        patch.setenv("RAY_worker_maximum_startup_concurrency", "8")
        patch.setenv("RAY_num_workers_soft_limit", "1")
        store.mkdir(parents=True)
        with open_bucket("chaos") as bucket:
            port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
            cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 6, "object_store_memory": MEMORY, "include_dashboard": False},
            )
            try:
                cluster.add_node(num_cpus=6, object_store_memory=MEMORY)
                made = CreateDataConfig.model_validate({**config, "output_file": f"{bucket}/data/out"})
                with open_gate(port) as gate:
                    arena = Arena(cluster, gate, made, folder / "asked", folder, delay_seconds)
                    try:
                        yield arena
                    finally:
                        if arena.driver is not None and arena.driver.poll() is None:
                            arena.kill_driver()
            finally:
                cluster.shutdown()
