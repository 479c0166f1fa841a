"""Bad input of the whole route: told at once, with status 2, and nothing is started or written."""

import dataclasses
import shutil

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
        ("train.lora_rank=64", ConfigError, r"train\.lora_rank is 64, but student\.max_lora_rank is 8"),
        ("student.max_model_len=64", ConfigError, r"student\.max_model_len is 64, but P.* take \d+ tokens"),
        ('train.lora_targets=["q_prj"]', ConfigError, r"no linear layer q_prj .did you mean q_proj"),
    ],
)
def test_what_is_missing_is_found_before_ray_starts(task_file, monkeypatch, argument, error, said):
    monkeypatch.setattr(distill, "connect", lambda _: pytest.fail("Ray was started"))
    with pytest.raises(error, match=said):
        distill.run(distill.read_settings([str(task_file), argument]))
    assert not (task_file.parent / "storage").exists()


def test_all_that_is_missing_is_told_at_once(task_file):
    argv = ["task.prompt=nowhere.md", "task.queries=nowhere.jsonl", "task.teacher_model=./none", "train.lora_rank=99"]
    done = run_job("distill", str(task_file), *argv, "task.student_model=./neither", 'train.log_to=["wandb"]')
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for said in ("prompt: nowhere.md", "queries: nowhere.jsonl", "./none", "./neither", "log_to: wandb"):
        assert done.stderr.count(said) == 1, done.stderr
    assert not (task_file.parent / "storage").exists()


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [
        ("create_data.prompt", "p2.json", "task.prompt"),
        ("create_data.queries", "q2.jsonl", "task.queries"),
        ("create_data.teacher_model", "base2", "task.teacher_model"),
        ("train.student_model", "base2", "task.student_model"),
        ("train.data_file", "elsewhere", "create_data.output_file"),
        ("evaluate.version", "v0001", "what distill evaluates"),
        ("evaluate.student_url", "http://elsewhere:8000", "where distill starts its student"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(task_file, monkeypatch, key, value, other):
    folder = task_file.parent
    for name in ("p.json", "q.jsonl"):
        shutil.copy(folder / name, folder / name.replace(".", "2."))
    shutil.copytree(folder / "base", folder / "base2", dirs_exist_ok=True)
    monkeypatch.setattr(distill, "connect", lambda _: pytest.fail("Ray was started"))
    place = value if value == "v0001" or "://" in value else str(folder / value)
    with pytest.raises(ConfigError, match=rf"^{key} is {place}, but {other} is .*: leave {key} out"):
        distill.run(distill.read_settings([str(task_file), f"{key}={place}"]))


def test_contradictions_are_told_together(task_file):
    argv = ["create_data.prompt=p2.json", "evaluate.version=final", "train.student_model=other/model"]
    with pytest.raises(ConfigError, match=r"(?s)create_data\.prompt is.*train\.student_model is.*evaluate\.version is"):
        distill.check_input(distill.read_settings([str(task_file), *argv]))


def test_what_says_the_same_twice_and_a_student_of_another_make_is_no_fault(task_file):
    url = "http://student:8000"
    argv = [f"create_data.prompt={task_file.parent}/./p.json", "create_data.output_file=own.jsonl"]
    argv += [f"student.url={url}", f"evaluate.student_url={url}/", "train.lora_rank=64", "student.max_model_len=16"]
    settings = distill.read_settings([str(task_file), *argv])
    distill.check_input(settings)
    assert settings.train.data_file == "own.jsonl", "what is trained on is what was created"


def test_a_dataset_that_has_cost_max_cost_starts_no_teacher(tmp_path, monkeypatch):
    prices = ["create_data.prices.input=0", "create_data.prices.output=1e6", "create_data.max_cost=5"]
    settings = distill.read_settings([str(write_tiny_task(tmp_path, 8000)), *prices])
    queries = distill.check_input(settings)
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
