"""A task file and arguments become sections."""

from typing import Literal

import pydantic
import pytest

from jobs import task
from jobs.data_config import CreateDataConfig
from raydistill.core.config import Section
from raydistill.core.errors import ConfigError

FILE = """
[task]
name = "analyst"
prompt = "analyst/prompt.md"
queries = "analyst/queries.jsonl"
teacher_model = "demo://smollm2-135m-instruct"
student_model = "demo://smollm2-135m-instruct"
storage = "s3://bucket/root"

[create_data]
num_examples = 200

[train]
lora_rank = 16

[evaluate.check]
format = "json_line"
keys = ["team"]
"""


class CreateData(Section):
    output_file: str
    teacher_model: str
    queries: str
    prompt: str
    num_examples: int = pydantic.Field(ge=1)


class Train(Section):
    data_file: str
    student_model: str
    output_dir: str | None = None
    lora_rank: int = pydantic.Field(default=32, ge=1)


class Check(Section):
    format: Literal["json_line", "text"] = "text"
    keys: list[str] = pydantic.Field(default_factory=list)


class Evaluate(Section):
    check: Check = Check()
    num_queries: int = 80


ALL = {"create_data": CreateData, "train": Train, "evaluate": Evaluate}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "configs" / "analyst.toml"
    path.parent.mkdir()
    path.write_text(FILE)
    return path


def test_task_supplies_every_jobs_defaults_when_all_tables_are_read(file):
    loaded, sections = task.load([str(file), "create_data.num_examples=50", "evaluate.check.keys=[]"], ALL, None)
    assert loaded is not None and loaded.name == "analyst"
    assert loaded.prompt == str(file.parent / "analyst" / "prompt.md")
    assert sections["create_data"] == CreateData(
        output_file="s3://bucket/root/datasets/analyst",
        teacher_model="demo://smollm2-135m-instruct",
        queries=str(file.parent / "analyst" / "queries.jsonl"),
        prompt=str(file.parent / "analyst" / "prompt.md"),
        num_examples=50,
    )
    assert sections["train"] == Train(
        data_file="s3://bucket/root/datasets/analyst",
        student_model="demo://smollm2-135m-instruct",
        output_dir="s3://bucket/root/models/analyst",
        lora_rank=16,
    )
    assert sections["evaluate"] == Evaluate(check=Check(format="json_line", keys=[]))


def test_bare_keys_belong_to_the_job_when_one_is_given(file):
    arguments = [str(file), "lora_rank=8", "output_dir=out", "task.storage=elsewhere"]
    loaded, sections = task.load(arguments, {"train": Train}, "train")
    assert loaded is not None and loaded.storage == "elsewhere"
    assert sections == {
        "train": Train(
            data_file="elsewhere/datasets/analyst",
            student_model="demo://smollm2-135m-instruct",
            output_dir="out",
            lora_rank=8,
        )
    }
    nested = task.load([str(file), "check.format=text"], {"evaluate": Evaluate}, "evaluate")[1]
    assert nested == {"evaluate": Evaluate(check=Check(format="text", keys=["team"]))}


def test_job_runs_without_a_file_when_its_keys_are_all_given():
    loaded, sections = task.load(["data_file=a.jsonl", "student_model=M"], {"train": Train}, "train")
    assert loaded is None
    assert sections["train"] == Train(data_file="a.jsonl", student_model="M", lora_rank=32)
    relative = ["queries=q.jsonl", "prompt=p.md", "teacher_model=M", "num_examples=3", "output_file=o.jsonl"]
    section = task.load(relative, {"create_data": CreateData}, "create_data")[1]["create_data"]
    assert isinstance(section, CreateData) and section.queries == "q.jsonl"


def test_every_fault_in_file_and_arguments_is_told_at_once(file):
    file.write_text(
        FILE.replace("storage =", "storge =").replace(
            "lora_rank = 16", "lora_rank = 0\n[tran]\nx = 1\n[cluster]\ny = 1"
        )
        + "\n[student]\nanything = 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        task.load([str(file), "create_data.num_exmples=5", "trian.lora_rank=3", "lonely=1"], ALL, None)
    text = str(caught.value)
    for words in (
        f"{file}: 6 faults",
        f"tran ({file}): unknown table (did you mean train?)",
        "trian.lora_rank (command line): write TABLE.KEY=value (did you mean train?)",
        "lonely (command line): write TABLE.KEY=value; tables are",
        f"task.storge ({file}): unknown key (did you mean storage?)",
        "create_data.num_exmples (command line): unknown key (did you mean num_examples?)",
        f"train.lora_rank ({file}): input should be greater than or equal to 1, given is 0",
    ):
        assert words in text, text


def test_missing_keys_are_told_when_there_is_no_file():
    with pytest.raises(ConfigError) as caught:
        task.load(["lora_rank=high"], {"train": Train}, "train")
    text = str(caught.value)
    assert "train.data_file: missing" in text and "train.student_model: missing" in text
    assert "train.lora_rank (command line): not a number" in text
    with pytest.raises(ConfigError, match=r"task\.name.*missing"):
        task.load([], ALL, None)


def test_names_that_are_no_folder_are_refused(file):
    with pytest.raises(ConfigError, match="no usable name"):
        task.load([str(file), "task.name=../etc"], {"train": Train}, "train")
    file.write_text('name = "x"\n')
    with pytest.raises(ConfigError, match="stands in no table"):
        task.load([str(file)], {"train": Train}, "train")


@pytest.mark.parametrize(
    ("table", "text", "is_moved"),
    [
        ('quality = {json_schema = "schema.json"}', "schema.json", True),
        ('judge = {rubric = "rubric.md", threshold = 3}', "rubric.md", True),
        ('judge = {rubric = "Is it right?", threshold = 3}', "Is it right?", False),
    ],
)
def test_files_that_the_task_names_lie_beside_it(tmp_path, table, text, is_moved):
    path = tmp_path / "task.toml"
    path.write_text(FILE.replace("num_examples = 200", f"num_examples = 200\n{table}"))
    _, sections = task.load([str(path)], {"create_data": CreateDataConfig}, None)
    config = sections["create_data"]
    assert isinstance(config, CreateDataConfig)
    found = config.quality.json_schema if table.startswith("quality") else config.judge.rubric
    assert found == (str(tmp_path / text) if is_moved else text)
