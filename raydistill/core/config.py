"""Configuration: frozen sections, `key=value` arguments, and every fault told at once."""

import datetime
import difflib
import json
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from raydistill.core.errors import ConfigError

COMMAND_LINE = "command line"
HELP = frozenset({"--help", "-h"})


class Section(pydantic.BaseModel):
    """A table of the configuration: frozen, without unknown keys, finite numbers only."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # `name=123` on the command line is a name
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_silent_conversion(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Refuse `true` and "3" for a number, and 1 or "yes" for a switch, which pydantic would convert."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        is_number = bool(kinds & {int, float}) and not kinds & {str, bool}
        if is_number and isinstance(value, (bool, str)):
            raise ValueError("not a number")
        if kinds - {type(None)} == {bool} and not isinstance(value, (bool, type(None))):
            raise ValueError("neither true nor false")
        return value


Model = TypeVar("Model", bound=pydantic.BaseModel)


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types a field's annotation allows, those of a Literal's values included."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return {type(value) for value in arguments}
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(arguments[0])
    if arguments and not isinstance(annotation, type) and typing.get_origin(annotation) not in (list, dict, tuple, set):
        return set().union(*(_kinds(argument) for argument in arguments))
    return {annotation}


def parse_arguments(argv: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Return the TOML file's path (None without one) and the `key=value` arguments by dotted key.

    A value is read as a TOML value (`3`, `0.5`, `true`, `["a", "b"]`), and as plain text where it is none.

    Raises:
        ConfigError: an argument of another form, a second file, or a key given twice; all of them together.
    """
    path: str | None = None
    values: dict[str, Any] = {}
    faults = []
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals and argument.endswith(".toml"):
            if path is not None:
                faults.append(f"{argument}: a second file after {path}; give one")
            path = argument
        elif not equals or not all(key.split(".")) or key != key.strip():
            faults.append(f"{argument!r}: allowed are one FILE.toml, arguments of the form key=value, and --help")
        elif key.startswith("-"):
            faults.append(f"{argument!r}: write {key.lstrip('-').replace('-', '_')}=... without dashes")
        elif key in values:
            faults.append(f"{key}: given twice")
        else:
            values[key] = _parse_value(text)
    raise_faults(faults, COMMAND_LINE)
    return path, values


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    is_plain = len(parsed) == 1 and not isinstance(value, (datetime.date, datetime.time))
    return value if is_plain else text


def read_toml(path: str) -> dict[str, Any]:
    """Return a TOML file's tables.

    Raises:
        ConfigError: there is no such file, or it is not TOML (with the line).
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give the path of a task file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested tables: `{"a.b": 1}` becomes `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *tables, last = key.split(".")
        table = nested
        for name in tables:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}: {name} was given a value of its own, so it is no table.")
            table = inner
        table[last] = value
    return nested


def validate(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """Return a section made of these values.

    Args:
        model: the section's class.
        values: by key, nested tables as dicts.
        source: where the values come from, as a user would name it.

    Raises:
        ConfigError: names every fault: the source, the key, what is allowed, and the nearest known key.
    """
    faults = find_faults(model, values, source)
    raise_faults(faults)
    return model.model_validate(dict(values))


def find_faults(
    model: type[pydantic.BaseModel],
    values: Mapping[str, Any],
    source: str | Mapping[str, str],
    prefix: str = "",
) -> list[str]:
    """Return what is wrong with a section's values, one sentence each; none when `validate` would succeed.

    Args:
        model: the section's class.
        values: by key, nested tables as dicts.
        source: one for all values, or one for each top-level key.
        prefix: the table's name with a dot, put before every key.
    """
    try:
        model.model_validate(dict(values))
    except pydantic.ValidationError as error:
        return [_explain(model, fault, source, prefix) for fault in error.errors(include_url=False)]
    return []


def raise_faults(faults: Sequence[str], where: str = "") -> None:
    """Raise one ConfigError that lists all faults; do nothing when there are none."""
    if not faults:
        return
    head = f"{where}: " if where else ""
    if len(faults) == 1:
        raise ConfigError(f"{head}{faults[0]}.")
    lines = "".join(f"\n  - {fault}" for fault in faults)
    raise ConfigError(f"{head}{len(faults)} faults in the configuration:{lines}")


def _explain(model: type[pydantic.BaseModel], fault: Any, source: str | Mapping[str, str], prefix: str) -> str:
    location = [str(part) for part in fault["loc"]]
    key = (prefix + ".".join(location)).rstrip(".")  # a fault of the table as a whole has no place in it
    where = source if isinstance(source, str) else source.get(location[0] if location else "", "")
    head = f"{key or 'configuration'} ({where})" if where else key or "configuration"
    schema = model.model_json_schema()
    if fault["type"] == "extra_forbidden":
        known = sorted(_resolve(schema, schema, location[:-1]).get("properties", {}))
        return f"{head}: unknown key{nearest(location[-1], known)}; known are {', '.join(known)}"
    allowed = _describe(schema, _resolve(schema, schema, location)) if location else ""
    if fault["type"] == "missing":
        return f"{head}: missing; needed is {allowed}" if allowed else f"{head}: missing"
    problem = fault["msg"].removeprefix("Value error, ").rstrip(".")
    given = f", given is {fault['input']!r:.80}" if not isinstance(fault["input"], dict) else ""
    return f"{head}: {problem[:1].lower()}{problem[1:]}{given}" + (f"; allowed is {allowed}" if allowed else "")


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ", did you mean X?" for the nearest known name, or "" where none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


@dataclass(frozen=True)
class Key:
    """What a user may say of one key.

    Attributes:
        name: with its table's, where it is in a table of the section.
        allowed: values, in words.
        default: as it would be written in TOML; None where it must be given, "" where leaving it out means nothing.
        meaning: the field's docstring.
    """

    name: str
    allowed: str
    default: str | None
    meaning: str


def describe_keys(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield every key of a section, those of the tables in it after their own."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        allowed = _describe(schema, _resolve(schema, schema, [name]))
        meaning = " ".join((field.description or "").split())
        tables = [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, Section)]
        if tables:
            yield Key(prefix + name, allowed, "", meaning)
            yield from describe_keys(tables[0], f"{prefix}{name}.")
            continue
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        yield Key(prefix + name, allowed, None if field.is_required() else _write(default), meaning)


def _write(default: Any) -> str:
    """Return a default as TOML, "" for None and for what is empty."""
    if default is None or default in ([], {}, ""):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return json.dumps(default, default=str) if isinstance(default, (str, list, tuple)) else str(default)


def _resolve(root: dict[str, Any], schema: dict[str, Any], location: Sequence[str]) -> dict[str, Any]:
    """Return the JSON schema at a location, {} where pydantic's location leads elsewhere (a union's branch)."""
    for part in location:
        schema = _follow(root, schema)
        schema = schema.get("properties", {}).get(part, schema.get("items", {}) if part.isdigit() else {})
    return _follow(root, schema)


def _follow(root: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "of {} characters or more",
    "minItems": "of {} items or more",
    "pattern": "like {}",
}


def _describe(root: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return what a field allows, in words."""
    schema = _follow(root, schema)
    if "anyOf" in schema:
        options = [_describe(root, option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(option for option in options if option)
    if "enum" in schema:
        return "one of " + ", ".join(repr(value) for value in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    words = [_TYPES.get(schema.get("type", ""), "")]
    if "items" in schema and (items := _describe(root, schema["items"])):
        words[0] += f" of {items}"
    words += [text.format(schema[bound]) for bound, text in _BOUNDS.items() if bound in schema]
    return " ".join(word for word in words if word)
