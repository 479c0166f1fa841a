"""A teacher whose replicas follow the load: it comes from nothing, rows at a time follow it, and it goes away again."""

import asyncio
import os
import threading
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from jobs import create_data
from raydistill.core.records import TokenRequest, TokenResult
from raydistill.engine.config import EngineConfig
from raydistill.teacher.attempt import count_replicas
from tests.jobs.create_data_desk import Desk
from tests.teacher.hash_teacher import HashTeacher

PLACES, MAX_REPLICAS, DELAY_SECONDS = 4, 3, 0.5
FOLLOWED = 2 * PLACES  # rows at a time with one replica, since one more is wanted then
ALONE_SECONDS = 2.0  # more for each row until the rows have followed a second replica: the job must not end before


class Observed(HashTeacher.func_or_class):  # pyright: ignore[reportGeneralTypeIssues] - the class below the deployment
    """The hash teacher, which writes down when a row comes and when it goes, and is slow until more of them come."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._rows = self._log.with_name("rows")
        self._have_followed = False

    async def generate(self, rows: list[TokenRequest], after: str | None = None) -> list[TokenResult]:
        self._note("+", len(rows))
        self._have_followed = self._have_followed or most_at_a_time(self._rows) > FOLLOWED
        if not self._have_followed:
            await asyncio.sleep(ALONE_SECONDS)
        answers = await super().generate(rows)
        self._note("-", len(rows))
        return answers

    def _note(self, sign: str, number: int) -> None:
        with self._rows.open("a") as file:
            file.write(f"{time.time()} {os.getpid()} {sign}{number}\n")


def most_at_a_time(log: Path) -> int:
    """Return the largest number of rows at the teacher at a time."""
    changes = [int(line.split()[2]) for line in sorted(log.read_text().splitlines())]
    return max(accumulate(changes))


@pytest.fixture
def teacher(cluster, model_dir, tmp_path):
    serve.start(http_options={"location": "NoServer"})
    scaling = {
        "min_replicas": 0,
        "initial_replicas": 0,
        "max_replicas": MAX_REPLICAS,
        "target_ongoing_requests": PLACES,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 1,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 1,
    }
    options = {"num_cpus": 1}
    deployment = serve.deployment(Observed, name="engine", autoscaling_config=scaling, ray_actor_options=options)  # pyright: ignore[reportCallIssue]
    app = deployment.options(max_ongoing_requests=256).bind(model_dir, str(tmp_path / "asked"), DELAY_SECONDS)
    handle = serve.run(app, name="scales", route_prefix=None)
    yield handle
    handle.shutdown()  # it would report to a controller that is gone
    serve.delete("scales")


def wait_for_none(handle) -> None:
    deadline = time.monotonic() + 60
    while count_replicas(handle) != 0:
        assert time.monotonic() < deadline, "the teacher does not go away"
        time.sleep(0.2)


def test_a_teacher_comes_from_nothing_grows_and_goes_away_for_each_job(teacher, model_dir, tmp_path):
    desk = Desk(tmp_path, model_dir, [f"Row {index}" for index in range(160)])
    engine = EngineConfig.model_validate({"autoscaling": {"min_replicas": 0, "max_replicas": MAX_REPLICAS}})
    seen, ended = set(), threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            seen.add(count_replicas(teacher))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for num_examples in (150, 160):
            assert count_replicas(teacher) == 0
            config = desk.config(num_examples=num_examples, concurrency=PLACES, commit_rows=16, smoke_rows=0)
            manifest = create_data.run(config, teacher, engine=engine, on_progress=lambda _: None)
            assert manifest.counts["kept"] == num_examples
            wait_for_none(teacher)
    finally:
        ended.set()
        thread.join()
    assert max(seen) >= 2
    assert FOLLOWED < most_at_a_time(tmp_path / "rows") <= PLACES * MAX_REPLICAS, "rows at a time follow the replicas"
