"""The recipe in two commands, as short as users know them; P and queries are then the shipped example's.

That they end in a published version: tests/cluster/test_two_clusters.py, beside another job.
"""

import pytest

from jobs import task
from jobs.data_config import CreateDataConfig
from raydistill.core.errors import ConfigError
from raydistill.queries.read import read_queries
from tests.processes import ROOT

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
