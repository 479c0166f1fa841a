"""create_data over real Ray Data and Serve, with a hash for a teacher: nothing lost, nothing twice, all counted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import create_data
from jobs.create_data import CreateDataConfig
from raydistill.core import storage
from raydistill.core.errors import ConfigError, ConflictError, DatasetError
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.queries.read import read_queries
from raydistill.renderers import get_renderer, load_tokenizer
from tests.jobs.moto_bucket import open_bucket
from tests.teacher import hash_teacher
from tests.tiny import make_tiny_model

ROOT = Path(__file__).parents[2]


def write_queries(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


class Desk:
    """One folder with a model, P and queries, and configs made of them."""

    def __init__(self, folder: Path, model_dir: str, texts: list[str]) -> None:
        self.folder = folder
        self.prompt = folder / "prompt.md"
        self.prompt.write_text("Be brief.")
        self.queries = write_queries(folder / "queries.jsonl", texts)
        self.model_dir = model_dir
        self.output = folder / "dataset"

    def config(self, **changes: Any) -> CreateDataConfig:
        values: dict[str, Any] = {
            "output_file": str(self.output),
            "teacher_model": self.model_dir,
            "num_examples": 10,
            "queries": str(self.queries),
            "prompt": str(self.prompt),
            "commit_rows": 8,
            "max_tokens": 40,
        }
        return CreateDataConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, model_dir: str):
    import ray
    from ray import serve

    log = tmp_path_factory.mktemp("teacher") / "asked"
    ours = not ray.is_initialized()  # other tests of the session may have a cluster already
    if ours:
        ray.init(
            num_cpus=12,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
        )
    yield hash_teacher.start(model_dir, str(log)), log
    serve.delete("hash")
    if ours:
        serve.shutdown()
        ray.shutdown()


def num_asked(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


GOOD = [f"Question {index}" for index in range(30)]
ODD = ["TRUNCATE a", "TRUNCATE b", "EMPTY a", "FAIL a", "LATER a", "long " * 100, "FLAKY a", "CRASH a"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, model_dir: str, teacher: Any) -> Desk:
    """A desk whose dataset was made by a teacher with every fault."""
    made = Desk(tmp_path_factory.mktemp("desk"), model_dir, GOOD + ODD)
    progress: list[tuple[int, int]] = []
    create_data.run(made.config(**EVERYTHING), teacher[0], on_progress=lambda *now: progress.append(now))
    assert progress[-1] == (38, 38)
    assert [now for now, _ in progress] == sorted({now for now, _ in progress})
    return made


EVERYTHING = {"num_examples": 38, "max_attempts": 5}


def test_create_data_accounts_for_every_row(desk: Desk) -> None:
    examples, manifest = read_examples(str(desk.output))
    assert manifest is not None
    assert manifest.counts["asked"] == 38 == manifest.counts["kept"] + sum(manifest.counts["dropped"].values())
    assert manifest.counts["dropped"] == {"truncated": 2, "empty": 1, "failed": 2, "too_long": 1}
    drops = [row for shard in manifest.drops for row in pq.read_table(desk.output / shard.uri).to_pylist()]
    assert Counter(row["reason"] for row in drops) == manifest.counts["dropped"]
    assert {row["detail"] for row in drops if row["reason"] == "failed"} == {"asked 5 times: ValueError: refused"}
    assert {example.messages[0]["content"] for example in examples} == {*GOOD, "FLAKY a", "CRASH a"}


def test_create_data_examples_hold_the_teachers_tokens_and_no_p(desk: Desk) -> None:
    examples, manifest = read_examples(str(desk.output))
    assert manifest is not None
    renderer = get_renderer("chat", load_tokenizer(desk.model_dir))
    for example in examples:
        assert example.response_tokens is not None
        message, ended = renderer.parse_response(example.response_tokens)
        assert (message["content"], ended) == (example.response, True)
        assert "Be brief" not in json.dumps(example.messages)
        assert example.prompt_digest == manifest.prompt_digest
    assert not list((desk.output / "requests").glob("*.parquet"))


def test_create_data_again_asks_nothing_and_failed_rows_only_when_told(desk: Desk, teacher: Any) -> None:
    handle, log = teacher
    before, asked = contents(desk.output), num_asked(log)
    manifest = create_data.run(desk.config(**EVERYTHING), handle)
    assert num_asked(log) == asked
    assert contents(desk.output) == before

    retried = create_data.run(desk.config(**EVERYTHING, retry_failed=True), handle)
    assert num_asked(log) == asked + 5 + 1  # FAIL five times, LATER once; what is too long is never sent
    assert retried.counts["dropped"] == {"truncated": 2, "empty": 1, "failed": 1, "too_long": 1}
    assert retried.fingerprint == manifest.fingerprint


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 1.0}, {"max_tokens": 41}, {"seed": 1}, {"top_p": 0.5}, {"renderer": "raw"}, {"prompt": "p"}],
)
def test_create_data_refuses_another_fingerprint(desk: Desk, teacher: Any, changes: dict[str, Any]) -> None:
    handle, log = teacher
    other = desk.folder / "other.md"
    other.write_text("Be long.")
    if "prompt" in changes:
        changes = {"prompt": str(other)}
    before, asked = contents(desk.folder), num_asked(log)
    with pytest.raises(ConflictError, match="another fingerprint"):
        create_data.run(desk.config(**{**EVERYTHING, **changes}), handle)
    assert contents(desk.folder) == before
    assert num_asked(log) == asked


def test_create_data_grows_by_asking_only_what_is_new(tmp_path: Path, model_dir: str, teacher: Any) -> None:
    handle, log = teacher
    desk = Desk(tmp_path, model_dir, [f"Grow {index}" for index in range(20)])
    asked = num_asked(log)
    create_data.run(desk.config(num_examples=10), handle)
    first, _ = read_examples(str(desk.output))
    create_data.run(desk.config(num_examples=30, num_samples=2), handle)
    assert num_asked(log) == asked + 30
    grown, manifest = read_examples(str(desk.output))
    assert grown[:10] == first
    assert len({example.id for example in grown}) == len({example.response for example in grown}) == 30
    assert manifest is not None
    assert {path.name for path in desk.output.glob("part-*")} == {shard.uri for shard in manifest.shards}

    create_data.run(desk.config(num_examples=10), handle)
    assert num_asked(log) == asked + 30
    assert read_examples(str(desk.output))[0] == first


KILLED_RUN = """
import sys
import ray
from jobs import create_data
from tests.jobs.moto_bucket import open_bucket
from tests.teacher import hash_teacher
config = create_data.CreateDataConfig.model_validate_json(sys.argv[1])
ray.init(num_cpus=8, object_store_memory=100 * 2**20, include_dashboard=False,
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[3]}})
handle = hash_teacher.start(config.teacher_model, sys.argv[2], delay_seconds=1.0)
create_data.run(config, handle, on_progress=lambda done, total: print("done", done, flush=True))
"""


def test_create_data_killed_in_the_middle_loses_and_doubles_nothing(tmp_path: Path, model_dir: str) -> None:
    num_rows, commit_rows, kill_at = 120, 10, 20
    desk = Desk(tmp_path, model_dir, [f"Killed {index} ü" for index in range(num_rows)])
    log = tmp_path / "asked"
    with open_bucket("killed") as bucket:
        output = f"{bucket}/data/out.jsonl"
        config = desk.config(num_examples=num_rows, commit_rows=commit_rows, concurrency=8, output_file=output)

        def start() -> subprocess.Popen[str]:
            command = [sys.executable, "-c", KILLED_RUN, config.model_dump_json(), str(log), str(ROOT)]
            quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)

        process = start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("done") and int(line.split()[1]) >= kill_at:
                    break
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
        time.sleep(2)  # its workers notice that it is gone
        assert kill_at <= num_asked(log) < num_rows, "it was killed in the middle"
        assert not read_manifest(output).finished
        assert not storage.exists(output)
        with pytest.raises(DatasetError, match="not finished"):
            read_examples(output)

        start().communicate(timeout=300)
        examples, manifest = read_examples(output)
        lines = [json.loads(line)["messages"] for line in storage.read_bytes(output).splitlines()]
    assert manifest is not None
    assert len({example.id for example in examples}) == num_rows == len(examples)
    assert sum(shard.rows for shard in manifest.answers) == num_rows, "every id is in the ledger once"
    assert lines == [[*item.messages, {"role": "assistant", "content": item.response}] for item in examples]
    # What was in work when it was killed: a block with each of two actors, and some that were waiting to be written.
    assert num_rows <= num_asked(log) <= num_rows + 6 * commit_rows


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_examples": 13}, "12 queries x num_samples=1 give 12"),
        ({"num_examples": 25, "num_samples": 2}, "give 24"),
        ({"queries": "missing.jsonl"}, "queries: missing.jsonl does not exist"),
        ({"prompt": "missing.md"}, "prompt: missing.md does not exist"),
        ({"teacher_model": "no/such/folder"}, "no/such/folder"),
        ({"output_file": "gs://bucket/x"}, "gs://bucket/x"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    tmp_path: Path, model_dir: str, changes: dict[str, Any], expected: str
) -> None:
    desk = Desk(tmp_path, model_dir, [f"Bad {index}" for index in range(12)])
    before = contents(tmp_path)
    with pytest.raises((ConfigError, LookupError), match=expected):
        create_data.run(desk.config(**changes))
    assert contents(tmp_path) == before


def test_bad_input_names_all_faults_together(tmp_path: Path, model_dir: str) -> None:
    desk = Desk(tmp_path, model_dir, ["a"])
    with pytest.raises(ConfigError) as caught:
        create_data.run(desk.config(prompt="missing.md", num_examples=5, teacher_model="no/such/folder"))
    for part in ("missing.md", "num_examples: 5", "no/such/folder"):
        assert part in str(caught.value)


def test_bad_input_a_place_that_holds_something_else(tmp_path: Path, model_dir: str) -> None:
    desk = Desk(tmp_path, model_dir, [f"Place {index}" for index in range(12)])
    desk.output.mkdir()
    (desk.output / "thesis.txt").write_text("years of work")
    file = tmp_path / "mine.jsonl"
    file.write_text("{}")
    for output in (desk.output, file, desk.prompt):
        with pytest.raises(ConfigError, match="output_file"):
            create_data.run(desk.config(output_file=str(output)))


def test_bad_input_a_prompt_that_leaves_no_room(tmp_path: Path, model_dir: str) -> None:
    from raydistill.engine.config import EngineConfig

    desk = Desk(tmp_path, model_dir, [f"Room {index}" for index in range(12)])
    desk.prompt.write_text("many words " * 100)
    with pytest.raises(ConfigError, match=r"teacher\.max_model_len"):
        create_data.run(desk.config(), engine=EngineConfig(max_model_len=128))
    assert not desk.output.exists()


def test_main_ends_with_status_2_and_every_fault(tmp_path: Path, model_dir: str) -> None:
    desk = Desk(tmp_path, model_dir, ["a"])
    arguments = [
        f"output_file={desk.output}",
        "temperatur=0.5",
        "num_examples=zero",
        f"prompt={desk.prompt}",
        "top_p=3",
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.create_data", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    for part in ("temperatur", "temperature", "num_examples", "top_p", "teacher_model", "queries"):
        assert part in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not desk.output.exists()


def test_rows_of_a_seed_are_the_first_of_a_larger_number(tmp_path: Path, model_dir: str) -> None:
    desk = Desk(tmp_path, model_dir, [f"Order {index}" for index in range(50)])
    small = create_data.make_plan(desk.config(num_examples=20)).rows
    large = create_data.make_plan(desk.config(num_examples=80, num_samples=2)).rows
    assert large[:20] == small
    assert Counter(row.sample_index for row in large) == {0: 50, 1: 30}
    queries = read_queries(desk.queries)
    assert [row.query for row in create_data.make_plan(desk.config(num_examples=50)).rows] != queries
