"""The tables of rules and of the judge: what is no rule is said before anything is asked."""

import json

import pytest

from raydistill.core.config import validate
from raydistill.core.errors import ConfigError
from raydistill.dataset.judge import compile_rubric
from raydistill.dataset.quality import JudgeConfig, QualityConfig, load_schema
from raydistill.dataset.rules import Rules, compile_rules


@pytest.mark.parametrize("key", ["must_match", "must_not_match", "refusal_patterns"])
def test_a_bad_expression_is_named_with_its_key(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} \(task.toml\): 'b\(' is no regular expression \(missing \)"):
        validate(QualityConfig, {key: ["a", "b("]}, "task.toml")


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "objekt"}, r"no JSON schema: \$\.type: 'objekt'"),
        ({"properties": {"a": {"minLength": -1}}}, r"no JSON schema: \$\.properties\.a\.minLength"),
        ({"$ref": "#/$defs/nothing"}, r"no JSON schema: \$ref '#/\$defs/nothing' leads nowhere"),
        ({"properties": {"a": {"$ref": "https://example.invalid/schema.json"}}}, r"no JSON schema: \$ref 'https"),
        ({"properties": {"a": {"pattern": "("}}}, "no JSON schema"),
        ({"$schema": "https://example.invalid/draft", "type": "object"}, "no JSON schema"),
        ({"$schema": 5}, "no JSON schema"),
    ],
)
def test_a_schema_that_is_no_schema_is_refused_inline_and_in_a_file(schema: dict, fault: str, tmp_path) -> None:
    with pytest.raises(ConfigError, match=fault):
        validate(QualityConfig, {"json_schema": schema}, "task.toml")
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    with pytest.raises(ConfigError, match=f"create_data.quality.json_schema: {path}: {fault}"):
        compile_rules(QualityConfig(json_schema=str(path)))


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"{", "line 1: not JSON"), (b"[]", "a table is needed"), (b"\xff", "not UTF-8"), (None, "cannot be read")],
)
def test_a_schema_file_that_cannot_be_used_is_named(content: bytes | None, fault: str, tmp_path) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"create_data.quality.json_schema: {path}.*{fault}"):
        compile_rules(QualityConfig(json_schema=str(path)))


def test_a_schema_file_is_the_same_rule_as_the_schema_in_the_table(tmp_path) -> None:
    schema = {"type": "object", "$defs": {"a": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/a"}}}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    in_file, inline = QualityConfig(json_schema=str(path)), QualityConfig(json_schema=schema)
    assert load_schema(in_file) == load_schema(inline) == schema
    assert compile_rules(in_file) == compile_rules(inline) != Rules()


def test_all_faults_are_told_at_once() -> None:
    values = {"must_match": ["("], "json_schema": {"type": 3}, "min_tokens": -1, "drop_refusals": 1}
    with pytest.raises(ConfigError, match="4 faults"):
        validate(QualityConfig, values, "task.toml")


def test_nothing_is_asked_for_by_default() -> None:
    assert compile_rules(QualityConfig(), JudgeConfig()) == Rules()
    assert compile_rubric(JudgeConfig()) is None


@pytest.mark.parametrize(
    ("model", "values", "fault"),
    [
        (QualityConfig, {"min_tokens": 5, "max_tokens": 4}, "max_tokens=4 is less than min_tokens=5"),
        (QualityConfig, {"near_duplicate_answers": 0.3}, "near_duplicate_answers"),
        (JudgeConfig, {"rubric": "good"}, "a rubric needs a threshold"),
        (JudgeConfig, {"rubric": "good", "threshold": 6}, "threshold is not between 1 and 5"),
        (JudgeConfig, {"lowest_score": 5}, "highest_score is not above lowest_score"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(model, values: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        validate(model, values, "task.toml")


def test_a_rubric_is_a_text_or_a_file(tmp_path) -> None:
    path = tmp_path / "rubric.md"
    path.write_text("Be brief.\n", encoding="utf-8")
    in_file = compile_rubric(JudgeConfig(rubric=str(path), threshold=3))
    assert in_file == compile_rubric(JudgeConfig(rubric="Be brief.", threshold=3))
    with pytest.raises(ConfigError, match=r"create_data.judge.rubric: nothing.md cannot be read"):
        compile_rubric(JudgeConfig(rubric="nothing.md", threshold=3))
    with pytest.raises(ConfigError, match=r"create_data.judge.rubric is empty"):
        compile_rubric(JudgeConfig(rubric=" ", threshold=3))
