"""The recipe in two commands, as short as users know them; P and queries are then the shipped example's."""

import json
from pathlib import Path

import pytest

from jobs import task
from jobs.data_config import CreateDataConfig
from raydistill.core.errors import ConfigError
from raydistill.core.prompts import load_prompt
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.queries.read import read_queries
from raydistill.registry.versions import list_versions
from tests.processes import ROOT, ray_address, run_job
from tests.tiny import make_tiny_model
from tests.tiny_task import make_answers_end

CONFIGS = ROOT / "jobs" / "configs"
SHORTEST = ["output_file=/tmp/analyst.jsonl", "teacher_model=MODEL", "num_examples=1000"]


def load(*argv: str) -> CreateDataConfig:
    _, sections = task.load(task.add_example(argv), {"create_data": CreateDataConfig}, "create_data")
    config = sections["create_data"]
    assert isinstance(config, CreateDataConfig)
    return config


def test_shortest_command_takes_the_examples_p_and_enough_of_its_queries(caplog):
    with caplog.at_level("INFO", logger="jobs.task"):
        config = load(*SHORTEST)
    assert "no prompt= and no queries=" in caplog.text and "analyst.toml" in caplog.text
    assert config.prompt == str(CONFIGS / "analyst.prompt.md")
    assert config.queries == str(CONFIGS / "analyst.queries.jsonl")
    assert len(read_queries(config.queries)) * config.num_samples >= 1000
    assert load(*SHORTEST, "num_samples=2").num_samples == 2


@pytest.mark.parametrize("given", ["prompt", "queries"])
def test_p_without_queries_or_queries_without_p_have_no_default(given):
    (other,) = {"prompt", "queries"} - {given}
    with pytest.raises(ConfigError, match=rf"create_data\b.*\b{other}\b.*missing"):
        load(*SHORTEST, f"{given}=mine")


def test_task_file_is_left_alone():
    config = load(str(CONFIGS / "triage.toml"))
    assert config.prompt == str(CONFIGS / "triage.prompt.json") and config.num_samples == 1


def make_long_tiny_model(folder: Path) -> str:
    """Save a tiny model that can read the example's P (2,872 of its tokens) and ends its answers."""
    make_tiny_model(folder)
    make_answers_end(folder)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), key: 4096}))
    return str(folder)


def test_both_commands_end_in_a_published_version(world, tmp_path):
    model = make_long_tiny_model(tmp_path / "model")
    data_file, output_dir = tmp_path / "analyst.jsonl", tmp_path / "models" / "analyst"
    done = run_job(
        "create_data",
        f"output_file={data_file}",
        f"teacher_model={model}",
        "num_examples=64",
        "temperature=1.0",
        "max_tokens=64",
        "num_actors=1",
        "smoke_rows=0",  # a random model ends some of its answers only
        "max_dropped_share=1.0",
        "teacher.max_model_len=4096",
        timeout_seconds=400,
        RAY_ADDRESS=ray_address(),
    )
    assert done.returncode == 0, done.stderr
    assert "of 64 answers kept" in done.stdout and "analyst.toml" in done.stderr
    prompt = load_prompt(CONFIGS / "analyst.prompt.md")
    assert read_manifest(str(data_file)).prompt_digest == prompt.digest
    assert prompt.messages[0]["content"][:200] not in data_file.read_text()
    examples, _ = read_examples(str(data_file))
    asked = {query.messages[0]["content"] for query in read_queries(CONFIGS / "analyst.queries.jsonl")}
    assert {example.messages[0]["content"] for example in examples} <= asked

    done = run_job(
        "train",
        f"data_file={data_file}",
        f"student_model={model}",
        f"output_dir={output_dir}",
        "num_epochs=1",
        "max_steps=3",
        timeout_seconds=300,
        RAY_ADDRESS=ray_address(),
    )
    assert done.returncode == 0, done.stderr
    (version,) = list_versions(str(output_dir))
    assert version.prompt_digest == prompt.digest and version.base_model == model
