"""A task file and `key=value` arguments become the sections of a job's configuration."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from jobs.key_help import describe_command
from raydistill.core import config as configuration
from raydistill.core.config import COMMAND_LINE, Section
from raydistill.core.errors import ConfigError
from raydistill.core.uris import check_name, join

TABLES = ("task", "create_data", "train", "evaluate", "teacher", "student", "cluster")
EXAMPLE = Path(__file__).parent / "configs" / "analyst.toml"
_PATHS = ("prompt", "queries")
# In tables of create_data's; a rubric may also be the text itself.
_NESTED_PATHS = (("quality", "json_schema", (".json",)), ("judge", "rubric", (".md", ".txt")))
logger = logging.getLogger(__name__)


class TaskConfig(Section):
    """What all jobs of a task share: each value is said once, here."""

    name: str
    """The task's and the model's name: `raydistill://NAME/final`."""
    prompt: str
    """P: a .md or .txt file (system text, or user template with {query}) or a .json list of messages."""
    queries: str
    """A .jsonl file of queries."""
    teacher_model: str
    """A folder, a hub id, s3:// or demo://: the model that answers with P in front."""
    student_model: str
    """The base model that learns to answer without P."""
    storage: str = ".raydistill"
    """ROOT of datasets, runs, models and reports: a folder or s3://bucket/key."""

    @pydantic.field_validator("name")
    @classmethod
    def _name_is_usable(cls, name: str) -> str:
        return check_name(name)


def load(
    argv: Sequence[str], tables: Mapping[str, type[Section]], job: str | None
) -> tuple[TaskConfig | None, dict[str, Section]]:
    """Return the task (None where no file and no argument speaks of one) and the sections asked for.

    Args:
        argv: at most one FILE.toml, and `key=value` arguments, which win over the file.
        tables: the class of each table that this job reads; other known tables of the file are left alone.
        job: the table that bare keys belong to ("train"), or None where every key is `table.key`.

    With --help among the arguments it prints every key of these tables and ends the process.

    Raises:
        ConfigError: lists every unknown table and key, missing key, wrong type and value out of range.
    """
    if configuration.HELP & set(argv):
        print(describe_command({**({"task": TaskConfig} if job is None else {}), **tables}, job))
        raise SystemExit(0)
    path, arguments = configuration.parse_arguments(argv)
    values, sources, faults = _merge(path, arguments, tables, job)
    if values["task"] or job is None:
        faults += configuration.find_faults(TaskConfig, values["task"], sources["task"], "task.")
    if path is not None:
        _resolve_paths(values, sources, path)
    for table, section in tables.items():
        _fill_from_task(table, section, values, sources)
        faults += configuration.find_faults(section, values[table], sources[table], f"{table}.")
    configuration.raise_faults(faults, "" if path is None else path)
    task = TaskConfig.model_validate(values["task"]) if values["task"] else None
    return task, {table: section.model_validate(values[table]) for table, section in tables.items()}


def add_example(argv: Sequence[str]) -> list[str]:
    """Return the arguments with the example task's P, queries and num_samples, where they name neither P nor queries.

    With one of the two given there is no default for the other: it would be answers to somebody else's questions.
    """
    if configuration.HELP & set(argv):
        return list(argv)
    path, given = configuration.parse_arguments(argv)
    keys = {key.rpartition(".")[2] for key in given}
    if path is not None or keys & set(_PATHS):
        return list(argv)
    logger.info("no prompt= and no queries=: taking those of the example task, %s", EXAMPLE)
    example = configuration.read_toml(str(EXAMPLE))
    added = {key: str(EXAMPLE.parent / example["task"][key]) for key in _PATHS}
    if "num_samples" not in keys:
        added["num_samples"] = example["create_data"]["num_samples"]
    return [*argv, *(f"{key}={value}" for key, value in added.items())]


Nested = dict[str, dict[str, Any]]


def _merge(
    path: str | None, arguments: Mapping[str, Any], tables: Mapping[str, type[Section]], job: str | None
) -> tuple[Nested, dict[str, dict[str, str]], list[str]]:
    """Return values by table and key, where each came from, and the faults in the tables' names."""
    known = sorted({*TABLES, *tables})
    values: Nested = {table: {} for table in known}
    sources: dict[str, dict[str, str]] = {table: {} for table in known}
    faults = []
    for table, content in (configuration.read_toml(path) if path is not None else {}).items():
        if table not in known or not isinstance(content, dict):
            what = "unknown table" if isinstance(content, dict) else "this key stands in no table"
            faults.append(
                f"{table} ({path}): {what}{configuration.nearest(table, known)}; known are {', '.join(known)}"
            )
            continue
        values[table] = dict(content)
        sources[table] = dict.fromkeys(content, str(path))
    for key, value in arguments.items():
        table, _, rest = key.partition(".")
        if table not in known or not rest:
            if job is None:
                hint = configuration.nearest(table, known)
                faults.append(f"{key} ({COMMAND_LINE}): write TABLE.KEY=value{hint}; tables are {', '.join(known)}")
                continue
            table, rest = job, key
        _set(values[table], rest, value)
        sources[table][rest.partition(".")[0]] = COMMAND_LINE
    return values, sources, faults


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested tables, without changing the tables that came from the file."""
    first, _, rest = key.partition(".")
    if not rest:
        table[first] = value
        return
    inner = dict(table[first]) if isinstance(table.get(first), dict) else {}
    _set(inner, rest, value)
    table[first] = inner


def _resolve_paths(values: Nested, sources: Mapping[str, Mapping[str, str]], path: str) -> None:
    """Make `prompt` and `queries` of the file relative to the file; those of the command line stay as they are."""
    for table, content in values.items():
        for key in _PATHS:
            text = content.get(key)
            if isinstance(text, str) and "://" not in text and sources[table].get(key) == path:
                content[key] = str(Path(path).absolute().parent / Path(text).expanduser())
    for table, key, suffixes in _NESTED_PATHS:
        inner = values["create_data"].get(table)
        if not isinstance(inner, dict) or sources["create_data"].get(table) != path:
            continue
        text = inner.get(key)
        if isinstance(text, str) and "\n" not in text and text.endswith(suffixes):
            place = Path(path).absolute().parent / Path(text).expanduser()
            values["create_data"][table] = {**inner, key: str(place)}


def _fill_from_task(table: str, section: type[Section], values: Nested, sources: Mapping[str, dict[str, str]]) -> None:
    """Supply what the task's table already says, where the section has that key and nobody set it."""
    task = {"storage": TaskConfig.model_fields["storage"].default, **values["task"]} if values["task"] else {}
    defaults: dict[str, Any] = {}
    if table == "create_data":
        defaults = {key: task.get(key) for key in ("teacher_model", "queries", "prompt")}
        defaults["output_file"] = _place(task, "datasets")
    elif table == "train":
        defaults = {"student_model": task.get("student_model")}
        defaults["data_file"] = values["create_data"].get("output_file") or _place(task, "datasets")
        defaults["output_dir"] = _place(task, "models")
    for key, value in defaults.items():
        if isinstance(value, str) and key in section.model_fields and key not in values[table]:
            values[table][key] = value
            sources[table][key] = "the task's table"


def _place(task: Mapping[str, Any], kind: str) -> str | None:
    """Return ROOT/kind/name, or None where the task does not say both (which is a fault of the task's own)."""
    try:
        return join(task["storage"], kind, check_name(task["name"]))
    except (KeyError, TypeError, AttributeError, ConfigError):
        return None
