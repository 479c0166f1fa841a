"""What create_data makes of its input before Ray starts: bad input is refused, and the rows to ask are chosen."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs import create_data, data_plan, runtime
from jobs.data_config import CreateDataConfig
from raydistill.core.errors import ConfigError
from raydistill.core.idset import pack_ids, unpack_ids
from raydistill.dataset.write import open_dataset
from raydistill.engine.config import EngineConfig
from raydistill.queries.read import read_queries
from raydistill.teacher.rows import Choice
from tests.dataset.ledger import commit, make_answer
from tests.jobs.create_data_desk import Desk, contents
from tests.processes import run_job


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


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        (b'{"question": "a"}\n', 'line 1: needs either "text" or "messages"'),
        (b'{"text": "a"}\n{"text": "\xfc"}\n', "line 2: not UTF-8"),
        (b"", "holds no queries"),
        (b'{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', "line 2: has the id of line 1, but another text"),
        (json.dumps({"text": "word " * 3000}).encode(), r"teacher\.max_model_len: P and the shortest query take 12"),
    ],
)
def test_bad_queries_are_told_before_anything_starts(
    tmp_path: Path, model_dir: str, monkeypatch: pytest.MonkeyPatch, lines: bytes, expected: str
) -> None:
    desk = Desk(tmp_path, model_dir, [])
    desk.queries.write_bytes(lines)
    with pytest.raises(ConfigError, match=expected):
        run_main(desk, monkeypatch, "num_examples=1", "smoke_rows=0")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prices.input=-1", r"create_data\.prices\.input .*greater than or equal to 0"),
        ("max_cost=1", "create_data: max_cost needs prices"),
        ("quality.json_schema=SCHEMA", r"quality\.json_schema: \S*schema.json: no JSON schema: \$\.type: 'nonsense'"),
        ("quality.json_schema=missing.json", "quality.json_schema: missing.json cannot be read"),
        ('quality.must_match=["("]', "no regular expression"),
        ('quality.json_schema={"type": "nonsense"}', r"no JSON schema: \$\.type: 'nonsense'"),
        ('quality.json_schema={"type": ', "this is no JSON"),
        ("renderer=raw", r"raw shows the teacher one message.* it would be 2.*template with \{query\}"),
        ("queries=CSV", 'there is no column "text" or "messages"; the columns are question, n'),
    ],
)
def test_bad_settings_are_told_before_anything_starts(
    tmp_path: Path, model_dir: str, monkeypatch: pytest.MonkeyPatch, override: str, expected: str
) -> None:
    desk = Desk(tmp_path, model_dir, ["a"])
    (tmp_path / "schema.json").write_text('{"type": "nonsense"}')
    (tmp_path / "queries.csv").write_text("question,n\na,1\n")
    override = override.replace("SCHEMA", f"{tmp_path}/schema.json").replace("CSV", f"{tmp_path}/queries.csv")
    with pytest.raises(ConfigError, match=expected) as caught:
        run_main(desk, monkeypatch, "num_examples=1", override)
    assert str(caught.value).count("json_schema") <= 1


def run_main(desk: Desk, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """Run the command in this process; it must not come as far as Ray, or write anything."""
    monkeypatch.setattr(create_data, "connect", lambda _: pytest.fail("it went on"))
    values = {"output_file": desk.output, "teacher_model": desk.model_dir, "prompt": desk.prompt}
    if not any(override.startswith("queries=") for override in overrides):
        values["queries"] = desk.queries
    try:
        create_data.main([*(f"{key}={value}" for key, value in values.items()), *overrides])
    finally:
        assert not desk.output.exists()


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
    desk = Desk(tmp_path, model_dir, [f"Room {index}" for index in range(12)])
    desk.prompt.write_text("many words " * 100)
    with pytest.raises(ConfigError, match=r"teacher\.max_model_len"):
        create_data.run(desk.config(), engine=EngineConfig(max_model_len=128))
    assert not desk.output.exists()


def test_a_dataset_that_has_cost_max_cost_starts_nothing(
    tmp_path: Path, model_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(tmp_path, model_dir, [f"Budget {index}" for index in range(12)])
    config = desk.config(prices={"input": 0, "output": 1e6}, max_cost=5)
    plan = data_plan.make_plan(config)
    spent = {"prompt": 0, "cached": 0, "completion": 5}
    open_dataset(plan.folder, dataclasses.replace(plan.draft, spent={"queries": spent}))
    before = contents(tmp_path)
    assert run_command(config, monkeypatch) == 1
    assert "5 so far, and max_cost is 5" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_answers_that_cannot_be_used_end_with_status_1(
    tmp_path: Path, model_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(tmp_path, model_dir, [f"Useless {index}" for index in range(10)])
    config = desk.config()
    plan = data_plan.make_plan(config)
    ids = unpack_ids(plan.choice.row_ids())
    open_dataset(plan.folder, plan.draft)
    commit(desk.output, "x-0", [make_answer(name, id=name, finish_reason="length") for name in ids])
    assert run_command(config, monkeypatch) == 1
    assert "not one of 10 answers is usable" in capsys.readouterr().err


def run_command(config: CreateDataConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process, as a shell does, and return its status; it must not come as far as Ray."""
    monkeypatch.setattr(create_data, "connect", lambda _: pytest.fail("it went on"))
    monkeypatch.setattr(runtime, "set_up_logging", lambda: None)
    given = config.model_dump(exclude_unset=True)
    prices = given.pop("prices", {})
    values = {**given, **{f"prices.{key}": price for key, price in prices.items()}}
    monkeypatch.setattr("sys.argv", ["create_data", *(f"{key}={value}" for key, value in values.items())])
    with pytest.raises(SystemExit) as ended:
        runtime.run_main(create_data.main)
    return ended.value.code


def test_main_ends_with_status_2_and_every_fault(tmp_path: Path, model_dir: str) -> None:
    desk = Desk(tmp_path, model_dir, ["a"])
    arguments = [
        f"output_file={desk.output}",
        "temperatur=0.5",
        "num_examples=zero",
        f"prompt={desk.prompt}",
        "top_p=3",
    ]
    ended = run_job("create_data", *arguments)
    assert ended.returncode == 2
    for part in ("temperatur", "temperature", "num_examples", "top_p", "teacher_model"):
        assert part in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not desk.output.exists()


def test_rows_of_a_seed_are_the_first_of_a_larger_number(tmp_path: Path, model_dir: str) -> None:
    desk = Desk(tmp_path, model_dir, [f"Order {index}" for index in range(50)])

    def choose(**changes: Any) -> tuple[Choice, set[bytes]]:
        choice = data_plan.make_plan(desk.config(**changes)).choice
        return choice, set(choice.row_ids().tolist())

    small, small_ids = choose(num_examples=20)
    large, large_ids = choose(num_examples=80, num_samples=2)
    assert (len(small_ids), len(large_ids)) == (20, 80)
    assert small_ids < large_ids
    assert Counter(large.num_samples.tolist()) == {1: 20, 2: 30}
    in_file_order = pack_ids(query.id for query in read_queries(desk.queries))[:20]
    assert set(small.ids[small.num_samples > 0].tolist()) != set(in_file_order.tolist())
