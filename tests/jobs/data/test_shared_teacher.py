"""A teacher that runs already is used by one job after another, from the command line, and left as it is."""

import time
from pathlib import Path
from typing import Any

import pytest

from jobs import create_data
from raydistill.core.errors import ConflictError, NotFoundError
from raydistill.dataset.read import read_manifest
from tests.jobs.create_data_desk import Desk, num_asked
from tests.teacher import hash_teacher
from tests.tiny import make_tiny_model

NAME, MAX_REPLICAS = "shared", 2


@pytest.fixture
def shared(teacher: Any, model_dir: str, tmp_path: Path):
    """The handle and the log of a teacher without a replica: one comes when it is asked, and goes away again."""
    from ray import serve

    scaling = {
        "min_replicas": 0,
        "initial_replicas": 0,
        "max_replicas": MAX_REPLICAS,
        "downscale_delay_s": 0.5,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 1,
    }
    log = tmp_path / "asked"
    options: Any = {"num_replicas": "auto", "autoscaling_config": scaling, "name": NAME}
    handle = hash_teacher.start(model_dir, str(log), **options)
    yield handle, log
    handle.shutdown()
    serve.delete(NAME)


def create(desk: Desk, output: Path, num_examples: int, application: str = NAME) -> None:
    create_data.main(
        [
            f"output_file={output}",
            f"teacher_model={desk.model_dir}",
            f"queries={desk.queries}",
            f"prompt={desk.prompt}",
            f"num_examples={num_examples}",
            f"teacher_application={application}",
        ]
    )


def test_jobs_share_a_teacher_that_comes_from_nothing_for_each(
    tmp_path: Path, model_dir: str, shared: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from raydistill.teacher.attempt import count_replicas
    from raydistill.teacher.running import find_teacher

    handle, log = shared
    desk = Desk(tmp_path, model_dir, [f"Shared {index}" for index in range(12)])
    for job in range(2):
        deadline = time.monotonic() + 60
        while count_replicas(handle) != 0:
            assert time.monotonic() < deadline, "it does not go away"
            time.sleep(0.2)
        create(desk, tmp_path / f"dataset-{job}", 12)
        assert read_manifest(str(tmp_path / f"dataset-{job}")).counts["kept"] == 12
        assert num_asked(log) == 12 * (job + 1)
    assert capsys.readouterr().out.count("12 of 12 answers kept") == 2
    assert find_teacher(NAME, 60).max_replicas == MAX_REPLICAS


def test_a_teacher_with_another_model_is_refused(tmp_path: Path, model_dir: str, shared: Any) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    desk = Desk(tmp_path, other, ["Other"])
    with pytest.raises(ConflictError, match=f"'{NAME}' answers with {model_dir} .*teacher_model is {other} "):
        create(desk, tmp_path / "dataset", 1)
    assert num_asked(shared[1]) == 0
    assert not (tmp_path / "dataset").exists()


def test_a_teacher_that_does_not_run_is_refused_and_those_that_do_named(
    tmp_path: Path, teacher: Any, model_dir: str
) -> None:
    desk = Desk(tmp_path, model_dir, ["None"])
    with pytest.raises(NotFoundError, match=r"no teacher 'nobody' runs .* Running: (.*, )?hash"):
        create(desk, tmp_path / "dataset", 1, "nobody")
    assert not (tmp_path / "dataset").exists()
