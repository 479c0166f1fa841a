"""Every shipped task file loads, and its prompt and queries are what the README promises."""

from pathlib import Path

import pytest

from jobs import distill
from raydistill.core.prompts import load_prompt
from raydistill.queries.read import read_queries
from raydistill.queries.split import split_queries

CONFIGS = sorted((Path(__file__).parents[2] / "jobs/configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_task_has_enough_of_everything(path):
    settings = distill.read_settings([str(path)])
    load_prompt(settings.task.prompt)
    asked, held_out = split_queries(read_queries(settings.task.queries))
    assert len(asked) * settings.create_data.num_samples >= settings.create_data.num_examples
    assert len(held_out) >= settings.evaluate.num_queries


def test_triage_has_500_queries_and_eight_shots():
    settings = distill.read_settings([str(path) for path in CONFIGS if path.stem == "triage"])
    assert len(read_queries(settings.task.queries)) >= 500
    roles = [message["role"] for message in load_prompt(settings.task.prompt).messages]
    assert roles[0] == "system"
    assert roles.count("assistant") >= 8
    assert settings.evaluate.num_queries >= 80
    assert settings.evaluate.min_tokens >= 2500
