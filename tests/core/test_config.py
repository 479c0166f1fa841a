"""Arguments, sections, and faults that are all told at once."""

from typing import Literal

import pydantic
import pytest

from raydistill.core.config import Section, find_faults, nest, parse_arguments, read_toml, validate
from raydistill.core.errors import ConfigError


class Check(Section):
    format: Literal["json_line", "text"] = "text"
    keys: list[str] = pydantic.Field(default_factory=list)


class Train(Section):
    data_file: str
    lora_rank: int = pydantic.Field(default=32, ge=1, le=512)
    learning_rate: float | None = pydantic.Field(default=None, gt=0)
    resume: bool = True
    check: Check = Check()


def test_values_are_toml_values_when_they_parse_and_text_otherwise():
    path, values = parse_arguments(
        [
            "task.toml",
            "a.b=3",
            "rate=1e-3",
            "on=true",
            'names=["x", "y"]',
            'quoted="7"',
            "uri=s3://bucket/x?y=z",
            "empty=",
            "day=2024-01-01",
            "two=1\nother = 2",
        ]
    )
    assert path == "task.toml"
    assert values == {
        "a.b": 3,
        "rate": 1e-3,
        "on": True,
        "names": ["x", "y"],
        "quoted": "7",
        "uri": "s3://bucket/x?y=z",
        "empty": "",
        "day": "2024-01-01",
        "two": "1\nother = 2",
    }
    assert parse_arguments([]) == (None, {})


def test_all_bad_arguments_are_named_when_there_are_several():
    with pytest.raises(ConfigError) as caught:
        parse_arguments(["a.toml", "b.toml", "stray", "--lora-rank=3", "x=1", "x=2", ".y=1"])
    text = str(caught.value)
    for words in (
        "command line: 5 faults",
        "b.toml: a second file",
        "'stray'",
        "write lora_rank=",
        "x: given twice",
        "'.y=1'",
    ):
        assert words in text


def test_every_fault_is_told_with_source_key_allowed_and_nearest():
    values = {
        "lora_rnak": 8,
        "lora_rank": 0,
        "learning_rate": "fast",
        "resume": 1,
        "check": {"format": "xml", "key": []},
    }
    with pytest.raises(ConfigError) as caught:
        validate(Train, values, "task.toml")
    text = str(caught.value)
    assert "7 faults" in text
    for words in (
        "lora_rnak (task.toml): unknown key (did you mean lora_rank?)",
        "data_file (task.toml): missing; needed is text",
        "lora_rank (task.toml): input should be greater than or equal to 1, given is 0; "
        "allowed is a whole number at least 1 at most 512",
        "learning_rate (task.toml): not a number, given is 'fast'; allowed is a number above 0",
        "resume (task.toml): neither true nor false, given is 1; allowed is true or false",
        "check.format (task.toml): input should be 'json_line' or 'text', given is 'xml'; "
        "allowed is one of 'json_line', 'text'",
        "check.key (task.toml): unknown key (did you mean keys?); known are format, keys",
    ):
        assert words in text, text


@pytest.mark.parametrize(
    "values",
    [
        {"lora_rank": True},
        {"lora_rank": "8"},
        {"lora_rank": 2.5},
        {"learning_rate": float("nan")},
        {"check": 3},
        {"check": {"keys": "a"}},
    ],
)
def test_wrong_types_are_refused_when_they_could_be_converted(values):
    assert len(find_faults(Train, {"data_file": "x", **values}, "test")) == 1


def test_section_is_made_and_frozen_when_values_are_right():
    section = validate(Train, {"data_file": 2024, "learning_rate": 1, "check": {"keys": ["team"]}}, "test")
    assert (section.data_file, section.learning_rate, section.check.keys) == ("2024", 1.0, ["team"])
    with pytest.raises(pydantic.ValidationError):
        setattr(section, "lora_rank", 3)  # noqa: B010 - assignment itself is what is tested


def test_faults_name_each_keys_own_source_when_sources_differ():
    faults = find_faults(
        Train, {"lora_rank": 0, "data_file": []}, {"lora_rank": "command line", "data_file": "t.toml"}, "train."
    )
    assert sorted(fault.split(":")[0] for fault in faults) == [
        "train.data_file (t.toml)",
        "train.lora_rank (command line)",
    ]


def test_dotted_keys_become_tables_when_nested():
    assert nest({"a.b.c": 1, "a.d": 2, "e": 3}) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    with pytest.raises(ConfigError, match=r"a\.b: a was given a value"):
        nest({"a": 1, "a.b": 2})


def test_toml_file_errors_name_file_and_line(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("[task]\nname = analyst\n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML.*line 2"):
        read_toml(str(bad))
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        read_toml(str(bad))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(str(tmp_path / "absent.toml"))
