"""Asking actors that die and teachers that fail: nothing is lost, and nothing is asked more often than it may be."""

import dataclasses
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs import create_data
from raydistill.core.answers import Commit
from raydistill.core.errors import QualityError
from raydistill.dataset import ledger
from raydistill.dataset.ledger import LedgerWriter
from raydistill.dataset.read import read_examples
from tests.chaos.reader import LOOKS_PER_SECOND, reading
from tests.jobs.create_data_desk import Desk, num_asked
from tests.teacher import hash_teacher

COMMIT_ROWS = 8
JOIN_SECONDS = 2.0  # in which the job looks for objects to join, and joins them


@dataclasses.dataclass(frozen=True)
class DyingWriter(LedgerWriter):
    """Kills its actor at one commit, once: before it or right after it."""

    def write(self, request: str, rows: list[dict]) -> Commit:
        """Write, or die."""
        log = Path(f"{self.folder}.writes")
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        is_the_one = log.read_text().count("\n") == int(Path(f"{self.folder}.die-at").read_text())
        if is_the_one and Path(f"{self.folder}.die-before").exists():
            time.sleep(JOIN_SECONDS)
            os._exit(1)
        commit = super().write(request, rows)
        if is_the_one:
            os._exit(1)
        return commit


def run_and_die(
    desk: Desk, teacher: Any, monkeypatch: pytest.MonkeyPatch, die_at: int, die_before: bool, **changes: Any
) -> int:
    """Create a dataset while the actor dies at a commit; return how many rows were asked more than once.

    The folder is a local one, and a reader looks on.
    """
    handle, log = teacher
    monkeypatch.setattr(create_data, "LedgerWriter", DyingWriter)
    Path(f"{desk.output}.die-at").write_text(str(die_at))
    if die_before:
        Path(f"{desk.output}.die-before").touch()
    before = num_asked(log)
    config = desk.config(commit_rows=COMMIT_ROWS, num_actors=1, concurrency=4, **changes)
    with reading(config.output_file) as reader:
        manifest = create_data.run(config, handle, on_progress=lambda _: None)
    assert not reader.faults
    assert reader.num_looks > LOOKS_PER_SECOND * reader.seconds
    pids = Path(f"{desk.output}.writes").read_text().split()
    assert len(set(pids)) == 2, "an actor died and another one took its rows over"
    examples, _ = read_examples(str(desk.output))
    assert len({example.id for example in examples}) == manifest.counts["asked"] == len(examples)
    return num_asked(log) - before - manifest.counts["asked"]


def test_what_was_joined_meanwhile_is_not_asked_again(
    tmp_path: Path, model_dir: str, teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, model_dir, [f"Joined {index}" for index in range(48)])
    monkeypatch.setattr(ledger, "COMPACT_ROWS", 4)
    monkeypatch.setattr("jobs.asking.object_rows", lambda *_: 48)  # one object, nearly done when its actor dies
    spare = run_and_die(desk, teacher, monkeypatch, 12, die_before=True, num_examples=48, smoke_rows=0)
    assert 0 < spare <= COMMIT_ROWS


def test_a_commit_whose_report_was_lost_counts_even_among_the_first(
    tmp_path: Path, model_dir: str, teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, model_dir, [f"Lost {index}" for index in range(24)])
    sizes = {"num_examples": 24, "smoke_rows": 6, "smoke_min_kept": 6}
    assert run_and_die(desk, teacher, monkeypatch, 1, die_before=False, **sizes) <= COMMIT_ROWS


def test_first_rows_that_all_failed_are_asked_again_when_told(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, [f"FLAKY {index}" for index in range(20)])
    config = desk.config(num_examples=20, smoke_rows=4, smoke_min_kept=4, num_actors=1, max_attempts=1)
    asked = num_asked(log)
    with pytest.raises(QualityError, match="of the first 4 answers 0"):
        create_data.run(config, handle, on_progress=lambda _: None)
    assert num_asked(log) == asked + 4
    again = config.model_copy(update={"retry_failed": True, "max_attempts": 2})
    assert create_data.run(again, handle, on_progress=lambda _: None).counts["kept"] == 20
    assert num_asked(log) == asked + 4 + 4 + 16 * 2


def test_transient_faults_are_all_recovered_with_three_tries_a_row(
    tmp_path: Path, model_dir: str, teacher: Any
) -> None:
    from ray import serve

    words = {"Good": 53, "FLAKY": 6, "RAISE": 6, "SLOW": 2, "CRASH": 1}
    texts = [f"{word} {index}" for word, number in words.items() for index in range(number)]
    long = [f"{'long ' * 400}{index}" for index in range(len(texts) // 9)]
    desk, log = Desk(tmp_path, model_dir, texts + long), tmp_path / "asked"
    options = {
        "num_replicas": 2,
        "max_ongoing_requests": 2,
        "max_queued_requests": 1,
        "name": "faulty",
    }  # often too busy
    handle = hash_teacher.start(model_dir, str(log), delay_seconds=0.02, **options)
    config = desk.config(num_examples=len(texts) + len(long), timeout_seconds=6, smoke_rows=0)
    counts = create_data.run(config, handle, on_progress=lambda _: None).counts
    assert counts["dropped"] == {"too_long": len(long)}
    assert counts["kept"] == len(texts) == counts["asked"] - len(long)
    tries = Counter(log.read_text().split())
    assert len(tries) == len(texts), "what is too long is not asked"
    assert max(tries.values()) <= 3
    assert sum(number > 1 for number in tries.values()) >= 15, "those with a fault were asked again"
    serve.delete("faulty")


def test_a_row_that_failed_is_asked_at_another_replica(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    from ray import serve

    texts = [f"SICK-{fault} {index}" for fault in ("FLAKY", "RAISE", "SLOW") for index in range(10)]
    desk, log = Desk(tmp_path, model_dir, texts), tmp_path / "asked"
    handle = hash_teacher.start(model_dir, str(log), num_replicas=2, one_is_sick=True, name="sick")
    config = desk.config(num_examples=30, max_attempts=2, timeout_seconds=4, smoke_rows=0)
    assert create_data.run(config, handle, on_progress=lambda _: None).counts["kept"] == 30
    assert set(Counter(log.read_text().split()).values()) == {1, 2}, "both replicas were asked"
    serve.delete("sick")


def test_an_engine_that_is_gone_for_a_while_fails_no_row(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, [f"LOST {index}" if index == 20 else f"There {index}" for index in range(60)])
    asked = num_asked(log)
    manifest = create_data.run(desk.config(num_examples=60, smoke_rows=0), handle, on_progress=lambda _: None)
    assert (manifest.counts["kept"], manifest.counts["dropped"]) == (60, {})
    assert num_asked(log) > asked + 60, "rows met a replica without its engine"
