"""Bad input of the whole route: told at once, with status 2, and nothing is started or written."""

import dataclasses

import pytest

from jobs import data_plan, distill
from raydistill.core.errors import BudgetError, ConfigError, NotFoundError
from raydistill.dataset.write import open_dataset
from raydistill.teacher import app
from tests.processes import run_job
from tests.tiny import make_tiny_model
from tests.tiny_task import write_tiny_task


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    return write_tiny_task(tmp_path_factory.mktemp("bad"), 8000)


def test_all_faults_are_told_at_once_with_status_2_and_nothing_written(task_file):
    argv = ["create_data.num_exampels=20", "train.zero_stage=7", "teacher.dtype=int3", "evaluat.num_queries=1"]
    done = run_job("distill", str(task_file), *argv)
    assert done.returncode == 2
    for said in ("num_exampels", "num_examples", "zero_stage", "dtype", "evaluat", "evaluate"):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (task_file.parent / "storage").exists()


@pytest.mark.parametrize(
    ("argument", "error", "said"),
    [
        ("create_data.num_examples=4000", ConfigError, "4000"),
        ("evaluate.num_queries=70", ConfigError, "held out"),
        ("task.queries=nowhere.jsonl", ConfigError, "nowhere.jsonl"),
        ("task.prompt=nowhere.md", ConfigError, "nowhere.md"),
        ("task.teacher_model=./no-such-folder", NotFoundError, "no-such-folder"),
        ("task.student_model=./no-such-folder", NotFoundError, "no-such-folder"),
        ("teacher.max_model_len=32", ConfigError, r"teacher\.max_model_len: P and the shortest query take"),
        ("train.output_dir=elsewhere/tiny", ConfigError, "output_dir"),
    ],
)
def test_what_is_missing_is_found_before_ray_starts(task_file, monkeypatch, argument, error, said):
    monkeypatch.setattr(distill, "connect", lambda _: pytest.fail("Ray was started"))
    with pytest.raises(error, match=said):
        distill.run(distill.read_settings([str(task_file), argument]))
    assert not (task_file.parent / "storage").exists()


def test_a_dataset_that_has_cost_max_cost_starts_no_teacher(tmp_path, monkeypatch):
    prices = ["create_data.prices.input=0", "create_data.prices.output=1e6", "create_data.max_cost=5"]
    settings = distill.read_settings([str(write_tiny_task(tmp_path, 8000)), *prices])
    queries = distill._check_input(settings)
    plan = data_plan.make_plan(settings.create_data, queries)
    spent = {"answers": {"prompt": 0, "cached": 0, "completion": 5}}
    open_dataset(plan.folder, dataclasses.replace(plan.draft, spent=spent))
    monkeypatch.setattr(app, "start", lambda *_: pytest.fail("a teacher was started"))
    with pytest.raises(BudgetError, match="5 so far, and max_cost is 5"):
        distill._ask_teacher(settings, queries, distill.Clock())


def test_kl_is_refused_before_ray_starts_when_another_models_soft_labels_are_not_to_be_recorded(
    task_file, monkeypatch, tmp_path
):
    class RayStarts(Exception):
        pass

    def start(_):
        raise RayStarts

    monkeypatch.setattr(distill, "connect", start)
    other = make_tiny_model(tmp_path / "other", seed=5)
    argv = [str(task_file), f"task.teacher_model={other}"]
    with pytest.raises(ConfigError, match=r"loss: kl is not possible: .*other answers.*create_data\.top_logprobs"):
        distill.run(distill.read_settings([*argv, "train.loss=kl"]))
    for allowed in ([*argv, "train.loss=kl", "create_data.top_logprobs=5"], argv, [str(task_file), "train.loss=kl"]):
        with pytest.raises(RayStarts):
            distill.run(distill.read_settings(allowed))


def test_a_task_file_is_needed():
    with pytest.raises(ConfigError, match="task file"):
        distill.read_settings(["create_data.num_examples=3"])


def test_an_absent_task_file_is_named_with_status_2_as_a_ray_job_would_show_it(tmp_path):
    done = run_job("distill", str(tmp_path / "absent.toml"))
    assert done.returncode == 2
    assert "absent.toml cannot be read" in done.stderr and "Traceback" not in done.stderr
