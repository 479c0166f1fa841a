"""More than a cluster can ever have: refused with both numbers, and before Ray is started where it is the job's own."""

import importlib
import sys

import pytest

from jobs import capacity, create_data
from jobs.capacity import cache_bytes, require_here
from jobs.runtime import ClusterConfig, run_main
from raydistill.core.errors import CapacityError
from raydistill.engine.config import EngineConfig
from tests.jobs.create_data_desk import Desk
from tests.processes import run_job
from tests.tiny_task import write_tiny_task

GIB = 2**30


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    return write_tiny_task(tmp_path_factory.mktemp("capacity"), 8000)


@pytest.fixture
def machine(monkeypatch):
    """A machine of 16 GiB, 12 of them for /dev/shm, without GPUs, on which Ray must not be started."""
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: pytest.fail("Ray was asked, which starts it"))
    monkeypatch.setattr("ray._common.utils.get_system_memory", lambda: 16 * GIB)
    monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda: 12 * GIB)
    monkeypatch.setattr(capacity, "count_gpus_here", lambda: 0)


@pytest.mark.parametrize(
    ("job", "argument", "said"),
    [
        ("distill", "teacher.num_replicas=9", ["23 CPU", "has 12"]),
        ("distill", "teacher.kv_cache_gib=16", ["16.29 GiB of memory", "kv_cache_gib", "has 16.00 GiB"]),
        ("distill", "student.kv_cache_gib=5000", ["5,000.29 GiB of memory", "has 16.00 GiB"]),
        ("distill", "cluster.object_store_mib=99999", ["97.66 GiB for cluster.object_store_mib", "has 12.00 GiB"]),
        ("distill", "train.use_gpu=true", ["2 GPU", "has 0"]),
        ("create_data", "teacher.kv_cache_gib=5000", ["5,000.29 GiB of memory", "has 16.00 GiB"]),
        ("create_data", "teacher.accelerator=gpu", ["1 GPU", "has 0"]),
        ("create_data", "cluster.num_cpus=4", ["7 CPU", "has 4"]),
        ("train", "num_workers=500", ["500 CPU", "has 12"]),
        ("train", "cluster.object_store_mib=15360", ["15.00 GiB for cluster.object_store_mib", "has 12.00 GiB"]),
        ("serve", "num_replicas=9", ["19 CPU", "has 12"]),
        ("serve", "kv_cache_gib=5000", ["5,000.29 GiB of memory", "has 16.00 GiB"]),
    ],
)
def test_what_this_machine_has_no_room_for_ends_with_status_2(
    task_file, machine, monkeypatch, capsys, job, argument, said
):
    monkeypatch.setattr(sys, "argv", [job, str(task_file), argument])
    with pytest.raises(SystemExit) as ended:
        run_main(importlib.import_module(f"jobs.{job}").main)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith(f"error: {job} needs ")
    assert [words for words in said if words not in told] == []
    assert not (task_file.parent / "storage").exists()


def test_all_that_is_short_is_told_at_once(machine):
    engine = EngineConfig(kv_cache_gib=20, num_replicas=2)
    config = ClusterConfig(num_cpus=4)
    with pytest.raises(
        CapacityError, match=r"9 CPU, the cluster has 4.*3 GPU, the cluster has 0.*40\.29 GiB.*16\.00 GiB"
    ):
        require_here("a job", config, 9, [engine], training_gpus=3)


def test_what_there_is_room_for_is_not_refused(machine, monkeypatch):
    config = ClusterConfig(num_cpus=4)
    require_here("one after another", config, 4, [EngineConfig(kv_cache_gib=15)] * 2)
    monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda: 64 * 2**20)  # as in many containers
    require_here("a store on disk", ClusterConfig(object_store_mib=1024), 4)
    monkeypatch.setattr(capacity, "count_gpus_here", lambda: 1)
    require_here("keys and values on a GPU", config, 4, [EngineConfig(kv_cache_gib=5000)])
    require_here("a cluster of others", ClusterConfig(address="auto"), 500)


@pytest.mark.parametrize(("visible", "num"), [(None, 4), ("0,2", 2), ("0,1,2,3,4", 4), ("", 0)])
def test_gpus_here_are_those_that_ray_would_find(monkeypatch, visible, num):
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    monkeypatch.setattr(manager, "get_current_node_num_accelerators", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert capacity.count_gpus_here() == num


def test_memory_of_a_shared_cluster_is_asked_for_unless_it_grows(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "memory": 4.0 * GIB})
    small, large = EngineConfig(kv_cache_gib=1), EngineConfig(kv_cache_gib=2, num_replicas=3)
    assert cache_bytes(ClusterConfig(address="auto"), small, large) == 6 * GIB
    assert cache_bytes(ClusterConfig(address="auto"), EngineConfig(accelerator="gpu")) == 0
    assert cache_bytes(ClusterConfig(address="auto", max_cpus=64), large) == 0
    assert cache_bytes(ClusterConfig(), large) == 0


def test_an_answered_dataset_needs_no_room_for_a_teacher(machine, model_dir, tmp_path, monkeypatch):
    desk, too_many = Desk(tmp_path, model_dir, [f"Query {index}" for index in range(10)]), EngineConfig(num_replicas=50)
    with pytest.raises(CapacityError, match="CPU, the cluster has 12"):
        create_data.run(desk.config(), engine=too_many)
    assert not desk.output.exists()
    desk.output.mkdir()
    with pytest.raises(CapacityError, match="CPU, the cluster has 12"):  # nothing is answered
        create_data.run(desk.config(), engine=too_many)
    monkeypatch.setattr(create_data, "is_answered", lambda *_: True)
    monkeypatch.setattr(create_data, "_finish", lambda *_: "finished")
    assert create_data.run(desk.config(), engine=too_many) == "finished"


def test_the_command_says_it_without_a_traceback(task_file):
    done = run_job("distill", str(task_file), "cluster.object_store_mib=99999999", "train.num_workers=500")
    assert done.returncode == 2
    assert "501 CPU, the cluster has 12" in done.stderr and "/dev/shm has" in done.stderr
    assert "Traceback" not in done.stderr
