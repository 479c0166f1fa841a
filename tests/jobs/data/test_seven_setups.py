"""The seven set-ups that break Ray Data's own checkpointing, as our ledger meets them: exactly once, or refused."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import create_data
from jobs.data_plan import Queries
from raydistill.core.errors import CapacityError, ConfigError
from raydistill.core.records import Manifest, Query, digest
from raydistill.dataset.ledger import ANSWERS
from raydistill.dataset.read import read_examples
from raydistill.engine.config import EngineConfig
from tests.jobs.create_data_desk import Desk, contents, num_asked
from tests.jsonl import write_jsonl


class Asked:
    """Runs create_data, and knows which rows the teacher was asked since then."""

    def __init__(self, teacher: Any) -> None:
        self._handle, self._log = teacher
        self._start = num_asked(self._log)

    def run(self, desk: Desk, queries: Queries | None = None, **changes: Any) -> Manifest:
        return create_data.run(
            desk.config(smoke_rows=0, **{"num_actors": 1, **changes}), self._handle, queries, on_progress=lambda _: None
        )

    def times(self) -> Counter[int]:
        """Return how many rows were asked once, twice and so on."""
        return Counter(Counter(self._log.read_text().split()[self._start :]).values())


def test_queries_in_memory_are_asked_once(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    desk, asked = Desk(tmp_path, model_dir, []), Asked(teacher)
    messages = [[{"role": "user", "content": f"Memory {index}"}] for index in range(12)]
    queries = Queries(lambda: [Query(digest(turns), turns) for turns in messages])
    for num_examples in (12, 12):
        assert asked.run(desk, queries, num_examples=num_examples).counts["kept"] == num_examples
    assert asked.times() == {1: 12}


def test_a_place_is_added_to_and_never_overwritten(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    desk, asked = Desk(tmp_path, model_dir, [f"Overwrite {index}" for index in range(12)]), Asked(teacher)
    output = tmp_path / "out.jsonl"
    asked.run(desk, num_examples=6, output_file=str(output))
    lines = set(output.read_bytes().splitlines())
    output.unlink()  # what was exported is not what counts
    asked.run(desk, num_examples=12, output_file=str(output))
    assert lines < set(output.read_bytes().splitlines())
    assert asked.times() == {1: 12}


def test_what_was_done_is_known_after_the_end_or_the_place_is_refused(
    tmp_path: Path, model_dir: str, teacher: Any
) -> None:
    desk, asked = Desk(tmp_path, model_dir, [f"Deleted {index}" for index in range(10)]), Asked(teacher)
    finished = asked.run(desk)
    before = contents(desk.output)
    assert asked.run(desk) == finished
    assert contents(desk.output) == before
    whole = tmp_path / "whole"
    shutil.copytree(desk.output, whole)
    (desk.output / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"holds other files .* and no manifest.json"):
        asked.run(desk)
    shutil.rmtree(desk.output)
    whole.rename(desk.output)
    shutil.rmtree(desk.output / ANSWERS)
    with pytest.raises(LookupError, match=r"answers/ledger-\S* does not exist"):
        asked.run(desk, num_examples=5)
    assert asked.times() == {1: 10}


def test_one_row_that_stands_in_several_files_and_blocks_is_asked_once(
    tmp_path: Path, model_dir: str, teacher: Any
) -> None:
    desk, asked = Desk(tmp_path, model_dir, []), Asked(teacher)
    folder = tmp_path / "queries"
    folder.mkdir()
    table = pa.table({"text": [f"Twice {index % 8}" for index in range(24)], "id": [str(index) for index in range(24)]})
    for name in ("one", "two"):
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=5)
    config = desk.config(smoke_rows=0, num_examples=16, num_samples=2).model_copy(update={"queries": str(folder)})
    for _ in range(2):
        manifest = create_data.run(config, teacher[0], on_progress=lambda _: None)
        assert (manifest.counts["kept"], manifest.counts["merged_queries"]) == (16, 40)
    assert asked.times() == {2: 8}, "each query has two samples"


def test_rows_without_an_id_are_asked_once(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    desk, asked = Desk(tmp_path, model_dir, []), Asked(teacher)
    write_jsonl(desk.queries, *({"text": f"Null {index}", "id": None} for index in range(10)))
    for _ in range(2):
        assert asked.run(desk).counts["kept"] == 10
    assert asked.times() == {1: 10}


def test_rows_that_failed_are_no_answers(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    texts = [f"{word} of ledger {index}" for word in ("Good", "FLAKY") for index in range(5)]
    desk, asked = Desk(tmp_path, model_dir, texts), Asked(teacher)
    assert asked.run(desk, max_attempts=1).counts["dropped"] == {"failed": 5}
    assert asked.run(desk, max_attempts=1).counts["kept"] == 5
    assert asked.times() == {1: 10}
    assert asked.run(desk, max_attempts=1, retry_failed=True).counts["kept"] == 10
    assert asked.times() == {1: 5, 2: 5}
    assert len(read_examples(str(desk.output))[0]) == 10


def test_a_run_that_goes_on_needs_no_more_cpus_and_too_few_are_refused(
    tmp_path: Path, model_dir: str, teacher: Any
) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    desk, asked = Desk(tmp_path, model_dir, [f"CPU {index}" for index in range(40)]), Asked(teacher)
    num_spare = int(ray.available_resources()["CPU"]) - (2 + 1)  # besides two actors and what Ray Data may want
    others = placement_group([{"CPU": num_spare}])
    ray.get(others.ready())
    try:
        for num_examples in (20, 40):
            manifest = asked.run(desk, num_examples=num_examples, num_actors=2)
            assert manifest.counts["kept"] == num_examples
    finally:
        remove_placement_group(others)
    assert asked.times() == {1: 40}
    other = desk.config(num_examples=40, output_file=str(tmp_path / "other"))
    num_cpus = int(ray.cluster_resources()["CPU"])
    with pytest.raises(CapacityError, match=f"CPU, the cluster has {num_cpus}"):
        create_data.run(other, engine=EngineConfig(num_replicas=num_cpus))
    assert not (tmp_path / "other").exists()
