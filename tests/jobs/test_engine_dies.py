"""A teacher of several jobs whose engine dies while one of them asks: that costs time, and not one row."""

import threading
import time
from pathlib import Path

import pytest
from ray import serve

from jobs import create_data
from jobs.data_plan import make_plan
from raydistill.core.idset import unpack_ids
from raydistill.dataset.layout import read_table
from tests.jobs.create_data_desk import Desk, num_asked
from tests.teacher import counted_teacher
from tests.tiny import make_tiny_model
from tests.tiny_task import make_answers_end

NUM_ROWS, KILL_AT, CONCURRENCY = 400, 60, 8
NAME = "shared-teacher"


@pytest.fixture
def teacher(cluster, tmp_path):
    """A vLLM teacher that runs: its model and its log."""
    model_dir, log = make_tiny_model(tmp_path / "model"), tmp_path / "asked"
    make_answers_end(Path(model_dir))
    counted_teacher.start(model_dir, str(log), NAME)
    yield model_dir, log
    serve.delete(NAME)


class Killer(threading.Thread):
    """Kills the engine when so many rows were asked, and says how many there were."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log
        self.num_asked = 0

    def run(self) -> None:
        while num_asked(self._log) < KILL_AT:
            time.sleep(0.02)
        counted_teacher.kill_engine(str(self._log))
        self.num_asked = num_asked(self._log)


def test_a_lost_engine_costs_time_and_not_one_row(teacher, tmp_path):
    model_dir, log = teacher
    desk = Desk(tmp_path, model_dir, [f"Row {index}" for index in range(NUM_ROWS)])
    # Many of a random model's answers do not end; attempts and time-outs are those of every job.
    sizes = {"num_examples": NUM_ROWS, "concurrency": CONCURRENCY, "smoke_rows": 0, "max_dropped_share": 1.0}
    config = desk.config(teacher_application=NAME, **sizes)
    killer = Killer(log)
    killer.start()
    manifest = create_data.run(config, on_progress=lambda _: None)
    killer.join()
    assert KILL_AT <= killer.num_asked < NUM_ROWS, "it was killed under way"
    assert "failed" not in manifest.counts["dropped"]
    assert manifest.counts["kept"] + sum(manifest.counts["dropped"].values()) == NUM_ROWS
    answers = [row for shard in manifest.answers for row in read_table(config.output_file, shard)["id"].to_pylist()]
    assert sorted(answers) == sorted(unpack_ids(make_plan(config).choice.row_ids()))
    assert num_asked(log) - NUM_ROWS <= CONCURRENCY, "only what the engine was computing is asked again"
    assert NAME in serve.status().applications, "it is the teacher of other jobs too"
