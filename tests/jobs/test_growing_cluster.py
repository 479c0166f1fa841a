"""A cluster that grows by itself, and a student that asks for a key: what jobs meet on Kubernetes."""

import http.server
import json
import threading

import httpx
import pytest

from jobs import distill
from jobs.runtime import ClusterConfig, require, require_nodes
from jobs.serve import read_status
from raydistill.core.errors import CapacityError
from tests.tiny_task import write_tiny_task


@pytest.fixture
def small_cluster(monkeypatch):
    """What Ray tells of a cluster whose workers have not been asked for yet."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0, "memory": 1e9})


def test_require_counts_what_the_cluster_can_grow_to(small_cluster):
    grows = ClusterConfig.model_validate({"max_cpus": 16, "max_gpus": 2})
    require("distill", cpus=16, gpus=2, cluster=grows)
    with pytest.raises(CapacityError, match=r"17 CPU, the cluster has 16; 3 GPU, the cluster has 2"):
        require("distill", cpus=17, gpus=3, cluster=grows)


def test_require_refuses_when_the_cluster_does_not_grow(small_cluster):
    with pytest.raises(CapacityError, match="8 CPU, the cluster has 1"):
        require("distill", cpus=8, cluster=ClusterConfig.model_validate({}))


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("teacher.accelerator=gpu", "distill needs 1 GPU, the cluster has 0"),
        ("train.use_gpu=true", "distill needs 2 GPU, the cluster has 0"),
        ("student.accelerator=gpu", "distill needs 1 GPU, the cluster has 0"),
        ("train.placement=STRICT_SPREAD", "STRICT_SPREAD needs 2 nodes, the cluster has 1"),
        ("teacher.num_replicas=9", "CPU, the cluster has 12"),
        ("train.threads_per_worker=8", "distill needs 17 CPU, the cluster has 12"),
    ],
)
def test_distill_names_what_the_cluster_lacks_before_anything_starts(tmp_path, monkeypatch, argument, said):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 12.0, "memory": 1e9})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(distill, "connect", lambda _: None)
    monkeypatch.setattr(distill, "start_http", lambda _: pytest.fail("Serve was started"))
    with pytest.raises(CapacityError, match=said):
        distill.run(distill.read_settings([str(write_tiny_task(tmp_path, 8000)), argument]))
    assert not (tmp_path / "storage").exists()


def test_spread_workers_are_no_fault_where_the_cluster_grows(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    require_nodes("train", 2, ClusterConfig.model_validate({"max_cpus": 8}))
    with pytest.raises(CapacityError, match="train needs 2 nodes, the cluster has 1"):
        require_nodes("train", 2, ClusterConfig.model_validate({}))


class _Guarded(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        right = self.headers.get("x-api-key") == "secret"
        self.send_response(200 if right else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"aliases": {"triage/final": "triage/v0001@x"}} if right else {}).encode())

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def guarded_url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_status_is_read_with_the_key_when_the_student_asks_for_it(guarded_url, monkeypatch):
    monkeypatch.setenv("RAYDISTILL_API_KEY", "secret")
    assert read_status(guarded_url)["aliases"] == {"triage/final": "triage/v0001@x"}
    monkeypatch.delenv("RAYDISTILL_API_KEY")
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        read_status(guarded_url)
