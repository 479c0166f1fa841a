"""create_data dies at every change that it makes to storage, or finds it away at every call, without Ray."""

import dataclasses
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import create_data
from jobs.data_config import CreateDataConfig
from raydistill.core import patience, storage
from raydistill.core.errors import UnavailableError
from raydistill.core.records import manifest_from_json
from raydistill.dataset import ledger
from raydistill.dataset.layout import read_table
from tests.jobs.asking_here import HashHere, teacher_here
from tests.jobs.create_data_desk import Desk, contents

__all__ = ["teacher_here"]
CHANGES = ("write_bytes", "delete", "upload")
CALLS = (*CHANGES, "read", "read_bytes", "list_names", "exists", "filesystem")
READ_BEFORE = {"source", "find_files", "read_rows"}  # functions that read queries, before any of them is asked


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine dies here: half of the time would go there."""
    monkeypatch.setattr(storage.os, "fsync", lambda _: None)


class Killed(BaseException):
    """A kill: nothing that catches errors catches it."""


def run(config: CreateDataConfig, teacher: Any) -> None:
    create_data.run(config, teacher, on_progress=lambda _: None)


def configure(folder: Path, teacher: HashHere, output: str) -> CreateDataConfig:
    """Return a small dataset; where it is a folder, the teacher also writes queries and grades its answers."""
    folder.mkdir()
    desk = Desk(
        folder, teacher.model_dir, [f"Where is parcel {index}?" for index in range(4 if ".jsonl" in output else 2)]
    )
    whole = {
        "expand": {"enabled": True, "max_tokens": 64},
        "judge": {"rubric": "Short?", "lowest_score": 0, "highest_score": 9, "threshold": 3, "sees_prompt": False},
    }
    return desk.config(
        output_file=str(folder / "out" / output),
        num_examples=8,
        num_samples=2,
        commit_rows=3,
        smoke_rows=3,
        smoke_min_kept=0,
        max_dropped_share=1.0,
        **({} if ".jsonl" in output else whole),
    )


def at_each_call(patch: pytest.MonkeyPatch, names: tuple[str, ...], before: Callable[[], None]) -> None:
    """Have something done before each call of some functions of core.storage."""

    def wrap(name: str) -> Callable[..., Any]:
        function = getattr(storage, name)

        def call(*arguments: Any, **options: Any) -> Any:
            before()
            return function(*arguments, **options)

        return call

    for name in names:
        patch.setattr(storage, name, wrap(name))


def run_and_die(config: CreateDataConfig, teacher: HashHere, die_at: int) -> bool:
    """Run until the die_at-th change to storage is about to be made; return whether there was one."""
    number = itertools.count(1)

    def die() -> None:
        if next(number) >= die_at:  # a dead process makes no further one either, on whatever thread
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        at_each_call(patch, CHANGES, die)
        try:
            run(config, teacher)
        except Killed:
            return True
    return False


def describe(config: CreateDataConfig) -> dict[str, Any]:
    """Return all that is there; of the ledgers' objects, which hold rows in the order they came, the sorted rows."""
    place = Path(config.output_file).parent
    files = {name.removeprefix(f"{place}/"): data for name, data in contents(place).items()}
    found: dict[str, Any] = {name: data for name, data in files.items() if "/answers/" not in name}
    for name in [name for name in found if name.endswith("manifest.json")]:
        manifest, folder = manifest_from_json(found.pop(name)), place / name.removesuffix("/manifest.json")
        rows = [row for shard in manifest.answers for row in read_table(str(folder), shard).to_pylist()]
        found[f"{name}: answers"] = sorted(rows, key=lambda row: row["id"])
        objects = {str(path.relative_to(folder)) for path in folder.glob("answers/**/*.parquet")}
        assert objects == {shard.uri for shard in manifest.answers}
        if "judgements" not in name:
            # What was spent on queries lacks a round that was cut short: docs/data.md says so.
            found[name] = dataclasses.replace(manifest, answers=[], spent={})
    return found


def as_set(found: dict[str, Any]) -> dict[str, Any]:
    """Return the same without the order of the examples, which is that of the ledger's large objects."""
    found = {name: value for name, value in found.items() if not name.endswith(".parquet")}
    found["out.jsonl"] = sorted(found["out.jsonl"].splitlines())
    found["out.jsonl.d/manifest.json"] = dataclasses.replace(found["out.jsonl.d/manifest.json"], shards=[])
    return found


@pytest.mark.parametrize(("output", "num_changes"), [("dataset", 40), ("out.jsonl", 20)])
def test_a_job_that_died_at_any_change_to_storage_goes_on(
    tmp_path: Path, teacher_here: HashHere, monkeypatch: pytest.MonkeyPatch, output: str, num_changes: int
) -> None:
    joins = output == "out.jsonl"
    look = as_set if joins else dict
    if joins:
        monkeypatch.setattr(ledger, "COMPACT_ROWS", 3)
    whole = configure(tmp_path / "whole", teacher_here, output)
    run(whole, teacher_here)
    expected, num_asked = look(describe(whole)), teacher_here.num_asked
    for die_at in itertools.count(1):
        config = configure(tmp_path / str(die_at), teacher_here, output)
        teacher_here.num_asked = 0
        if not run_and_die(config, teacher_here, die_at):
            assert die_at > num_changes
            return
        run(config, teacher_here)
        found = look(describe(config))
        differing = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
        assert not differing, f"it died at change {die_at}"
        assert teacher_here.num_asked <= num_asked + config.commit_rows, f"it died at change {die_at}"


@pytest.mark.parametrize("output", ["dataset", "out.jsonl"])
def test_a_store_that_is_away_at_any_call_once_asking_has_begun_is_waited_for(
    tmp_path: Path, teacher_here: HashHere, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    whole, config = (configure(tmp_path / name, teacher_here, output) for name in ("whole", "away"))
    run(whole, teacher_here)
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.001)
    places: set[tuple[Any, ...]] = set()  # from where storage was called

    def be_away_once() -> None:
        frames = traceback.extract_stack()[:-2]
        place = tuple((frame.filename, frame.lineno) for frame in frames)
        is_exempt = frames[-1].filename == storage.__file__ or READ_BEFORE & {frame.name for frame in frames}
        if place in places or is_exempt or not Path(config.output_file).parent.exists():
            return
        places.add(place)
        raise UnavailableError(f"away for {place[-1]}.")

    at_each_call(monkeypatch, CALLS, be_away_once)
    run(config, teacher_here)
    monkeypatch.undo()
    assert describe(config) == describe(whole)
    assert len(places) > 20
