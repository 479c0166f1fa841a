"""Every shipped task file loads, and its prompt and queries are what the README promises."""

from pathlib import Path

import pytest

from jobs import distill
from raydistill.core.models import resolve_model
from raydistill.core.prompts import load_prompt, student_messages, teacher_messages
from raydistill.queries.read import read_queries
from raydistill.queries.split import split_queries
from raydistill.renderers import get_renderer, load_tokenizer

CONFIGS = sorted((Path(__file__).parents[2] / "jobs/configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_task_has_enough_of_everything(path):
    settings = distill.read_settings([str(path)])
    load_prompt(settings.task.prompt)
    asked, held_out = split_queries(read_queries(settings.task.queries))
    assert len(asked) * settings.create_data.num_samples >= settings.create_data.num_examples
    assert len(held_out) >= settings.evaluate.num_queries


@pytest.fixture(scope="module")
def renderer():
    """The demo model's: a yardstick for the tasks of other models too, whose tokenizers make fewer tokens."""
    return get_renderer("chat", load_tokenizer(resolve_model("demo://smollm2-135m-instruct", weights=False)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_task_has_room_for_its_longest_query_and_a_whole_answer(path, renderer):
    settings = distill.read_settings([str(path)])
    prompt, queries = load_prompt(settings.task.prompt), read_queries(settings.task.queries)
    longest = max(queries, key=lambda query: sum(len(message["content"]) for message in query.messages)).messages
    with_p = renderer.build_generation_prompt(teacher_messages(prompt, longest)).length
    without_p = renderer.build_generation_prompt(student_messages(longest)).length
    max_tokens = max(settings.create_data.max_tokens, settings.evaluate.max_tokens)
    assert with_p + max_tokens <= settings.teacher.max_model_len
    assert with_p + settings.evaluate.latency_tokens <= settings.student.max_model_len
    assert without_p + max_tokens <= settings.student.max_model_len


def test_triage_prompt_is_long_enough_to_be_worth_it(renderer):
    settings = distill.read_settings([str(path) for path in CONFIGS if path.stem == "triage"])
    query = [{"role": "user", "content": "?"}]
    with_p = renderer.build_generation_prompt(teacher_messages(load_prompt(settings.task.prompt), query)).length
    assert with_p - renderer.build_generation_prompt(query).length >= 500


def test_analyst_has_300_queries():
    settings = distill.read_settings([str(path) for path in CONFIGS if path.stem == "analyst"])
    assert len(read_queries(settings.task.queries)) >= 300


def test_triage_has_500_queries_and_eight_shots():
    settings = distill.read_settings([str(path) for path in CONFIGS if path.stem == "triage"])
    assert len(read_queries(settings.task.queries)) >= 500
    roles = [message["role"] for message in load_prompt(settings.task.prompt).messages]
    assert roles[0] == "system"
    assert roles.count("assistant") >= 8
    assert settings.evaluate.num_queries >= 80
    assert settings.evaluate.min_tokens >= 2500
