"""A cluster that grows by itself, and a student that asks for a key: what jobs meet on Kubernetes."""

import http.server
import json
import threading

import httpx
import pytest

from jobs import distill
from jobs.capacity import require, require_room
from jobs.runtime import ClusterConfig
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
        (
            "train.placement=STRICT_SPREAD",
            "STRICT_SPREAD needs 2 times 1 CPU, each on a node of its own; .* room for 1,",
        ),
        ("teacher.num_replicas=9", "CPU, the cluster has 12"),
        ("train.threads_per_worker=8", "distill needs 17 CPU, the cluster has 12"),
    ],
)
def test_distill_names_what_the_cluster_lacks_before_anything_starts(tmp_path, monkeypatch, argument, said):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 12.0, "memory": 1e9})
    monkeypatch.setattr(ray, "nodes", lambda: make_nodes({"CPU": 12.0}))
    monkeypatch.setattr(distill, "connect", lambda _: None)
    monkeypatch.setattr(distill, "start_http", lambda _: pytest.fail("Serve was started"))
    with pytest.raises(CapacityError, match=said):
        distill.run(distill.read_settings([str(write_tiny_task(tmp_path, 8000)), argument]))
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    ("nodes", "argument", "said"),
    [
        ([4, 4, 4], "train.threads_per_worker=5", "train needs 2 times 5 CPU, each on one node; .* room for 0,"),
        (
            [9, 1, 2],
            "train.threads_per_worker=5",
            "train needs 2 times 5 CPU.*room for 1, its 3 nodes have 1 CPU, 2 CPU, 9 CPU",
        ),
        (
            [1] * 12,
            "train.threads_per_worker=1",
            "the teacher needs 1 times 2 CPU.*room for 0, its 12 nodes have 1 CPU",
        ),
    ],
)
def test_distill_names_what_no_single_node_has_room_for(tmp_path, monkeypatch, nodes, argument, said):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(sum(nodes)), "memory": 1e9})
    monkeypatch.setattr(ray, "nodes", lambda: make_nodes(*({"CPU": float(cpus)} for cpus in nodes)))
    monkeypatch.setattr(distill, "connect", lambda _: None)
    monkeypatch.setattr(distill, "start_http", lambda _: pytest.fail("Serve was started"))
    task_file = write_tiny_task(tmp_path, 8000)
    arguments = [str(task_file), argument, f"cluster.shared_dir={tmp_path}"]
    with pytest.raises(CapacityError, match=said):
        distill.run(distill.read_settings(arguments))


def make_nodes(*resources):
    """What Ray tells of nodes: these, and one that has died."""
    alive = [{"Alive": True, "Resources": each} for each in resources]
    return [*alive, {"Alive": False, "Resources": {}}]


def test_room_is_counted_node_by_node_and_a_cluster_that_grows_is_believed(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "nodes", lambda: make_nodes({"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0}))
    fixed = ClusterConfig.model_validate({})
    require_room("x", 3, {"CPU": 3}, fixed)
    require_room("x", 2, {"CPU": 3}, fixed, apart=True)
    for count, size, apart in ((4, {"CPU": 3}, False), (3, {"CPU": 3}, True), (2, {"CPU": 1, "GPU": 1}, False)):
        with pytest.raises(CapacityError, match=f"x needs {count} times"):
            require_room("x", count, size, fixed, apart)
        require_room("x", count, size, ClusterConfig.model_validate({"max_cpus": 8}), apart)


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
