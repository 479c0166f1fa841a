"""Places are looked at before the start: stores that cannot be used, and folders that other nodes do not see."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs import create_data, distill, evaluate, import_adapter, serve, train
from jobs.places import check_shared, model_places
from jobs.runtime import BAD_INPUT, ClusterConfig
from raydistill.core.config import validate
from raydistill.core.errors import ConfigError
from tests.conftest import write_tiny_task
from tests.moto_bucket import open_bucket

ROOT = Path(__file__).parents[2]


def to_import(**places: str) -> list[str]:
    """Return the arguments of an import in which all is fine but these."""
    fine = {"name": "x", "adapter_dir": ".", "base_model": "demo://smollm2-135m-instruct", "storage": "s3://there/root"}
    return [f"{key}={value}" for key, value in {**places, **fine, **places}.items()]


@pytest.fixture(scope="module")
def bucket():
    with open_bucket("there") as uri:
        yield uri


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    return write_tiny_task(tmp_path_factory.mktemp("places"), 8000)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    for job in (create_data, distill, serve, train):
        monkeypatch.setattr(job, "connect", lambda _: pytest.fail("Ray was started"))


def test_one_node_may_have_its_places_anywhere():
    check_shared([("task.storage", ".raydistill"), ("train.output_dir", "/tmp/x")], None, num_nodes=1)


def test_with_several_nodes_every_place_of_one_machine_is_named(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "leads_out").symlink_to(tmp_path)
    fine = [("a", "s3://bucket/x"), ("b", f"{shared}/not/yet/there"), ("c", str(shared))]
    alone = [
        ("task.storage", ".raydistill"),
        ("train.output_dir", f"{tmp_path}/shared-not"),
        ("train.log_path", f"{shared}/../runs"),
        ("train.data_file", f"{shared}/leads_out/data.jsonl"),
    ]
    check_shared(fine, str(shared), num_nodes=3)
    with pytest.raises(ConfigError) as caught:
        check_shared([*fine, *alone], str(shared), num_nodes=3)
    text = str(caught.value)
    assert "3 nodes" in text and str(shared) in text
    for key, path in alone:
        assert f"{key}: {path}" in text
    assert all(f"- {key}: " not in text for key, _ in fine)
    with pytest.raises(ConfigError, match=r"no cluster\.shared_dir is set"):
        check_shared(alone[:1], None, num_nodes=2)
    with pytest.raises(ConfigError, match="mounted"):
        check_shared(fine, str(tmp_path / "unmounted"), num_nodes=2)


def test_models_count_where_they_lie_on_one_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "cache"))
    assert model_places("k", "Qwen/Qwen3-1.7B") == model_places("k", "s3://bucket/model") == []
    assert model_places("k", str(tmp_path)) == [("k", str(tmp_path))]
    demo = model_places("train.student_model", "demo://smollm2-135m-instruct")
    check_shared(demo, str(tmp_path), num_nodes=2)
    monkeypatch.setenv("RAYDISTILL_CACHE", "/somewhere/else")
    demo = model_places("train.student_model", "demo://smollm2-135m-instruct")
    with pytest.raises(ConfigError, match=r"(?s)train\.student_model.*demo://.*RAYDISTILL_CACHE.*/somewhere/else"):
        check_shared(demo, str(tmp_path), num_nodes=2)


def test_a_relative_shared_folder_is_refused():
    with pytest.raises(ConfigError, match="absolute"):
        validate(ClusterConfig, {"shared_dir": "shared"}, "cluster")


@pytest.fixture(autouse=True)
def others_cluster(monkeypatch):
    """A command ends its own cluster, which these never come to have: the one that the session has up stays."""
    for job in (distill, train, serve):
        for name in {"disconnect", "stop_student"} & set(vars(job)):
            monkeypatch.setattr(job, name, lambda *_: None)


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        (distill, ["task.storage=s3://not-there/root"]),
        (create_data, ["output_file=s3://not-there/data.jsonl"]),
        (create_data, ["teacher_model=s3://not-there/model"]),
        (train, ["output_dir=s3://not-there/models/x"]),
        (train, ["log_path=s3://not-there/runs"]),
        (train, ["data_file=s3://not-there/data.jsonl"]),
        (serve, ["task.storage=s3://not-there/root"]),
        (serve, ["task.student_model=s3://not-there/model"]),
        (evaluate, ["task.storage=s3://not-there/root", "teacher_url=http://127.0.0.1:1"]),
        (import_adapter, to_import(adapter_dir="s3://not-there/lora")),
        (import_adapter, to_import(storage="s3://not-there/root")),
        (import_adapter, to_import(base_model="s3://not-there/model")),
    ],
    ids=lambda value: value.__name__ if hasattr(value, "__name__") else value[0],
)
def test_every_job_refuses_a_missing_bucket_before_ray_starts(bucket, task_file, job, arguments):
    with pytest.raises(BAD_INPUT, match="the bucket does not exist"):
        job.main([str(task_file), *arguments])
    assert not (task_file.parent / "storage").exists()


def test_create_data_tells_of_the_store_with_all_other_faults(bucket, task_file):
    with pytest.raises(ConfigError) as caught:
        create_data.main([str(task_file), "output_file=s3://not-there/d", "num_examples=4000", "prompt=nowhere.md"])
    for said in ("s3://not-there/d", "4000", "nowhere.md"):
        assert said in str(caught.value)


def test_a_folder_that_cannot_be_written_is_bad_input(task_file):
    with pytest.raises(ConfigError, match="cannot be written"):
        distill.main([str(task_file), f"task.storage={task_file}/below"])


def test_the_exit_status_is_2(bucket, task_file):
    command = [sys.executable, "-m", "jobs.train", str(task_file), "output_dir=s3://not-there/models/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "the bucket does not exist" in done.stderr and "Traceback" not in done.stderr
