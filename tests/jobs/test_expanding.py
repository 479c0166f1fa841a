"""What create_data says and does where the teacher writes queries, without Ray."""

from pathlib import Path

import pytest

from jobs import create_data
from jobs.data_config import CreateDataConfig
from raydistill.core.errors import QualityError
from raydistill.queries.config import ExpansionConfig
from tests.jobs.asking_here import HashHere, teacher_here
from tests.jobs.create_data_desk import Desk

__all__ = ["teacher_here"]


def test_a_teacher_that_refuses_to_write_is_quoted(tmp_path: Path, teacher_here: HashHere) -> None:
    teacher_here.fault = "ValueError: no such model"
    desk = Desk(tmp_path, teacher_here.model_dir, ["Where is my parcel?"])
    config = desk.config(expand={"enabled": True, "idle_rounds": 1}, max_attempts=1)
    with pytest.raises(QualityError, match=r"failed; the last error: asked 1 times: ValueError: no such model"):
        create_data.run(config, teacher_here, on_progress=lambda _: None)  # pyright: ignore[reportArgumentType]


def test_a_kill_asks_for_no_more_queries_again_than_an_actor_has_rows_uncommitted() -> None:
    config = ExpansionConfig()
    assert config.requests_per_round <= CreateDataConfig.model_fields["commit_rows"].default
    assert config.requests_per_round * config.queries_per_request * config.max_rounds >= 400_000
