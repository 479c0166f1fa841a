"""Answers that have to be JSON: is this a schema, is this text JSON, and does it satisfy the schema?"""

import functools
import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, SchemaRegistry

from raydistill.core.records import canonical_json
from raydistill.dataset.timed import search

_OFFLINE: SchemaRegistry = Registry()  # jsonschema's own fetches a $ref from the net


def check_schema(schema: Any) -> None:
    """Refuse what is no JSON schema, or refers to what it does not hold.

    Raises:
        ValueError: says what is wrong, and where in the schema.
    """
    if not isinstance(schema, dict):
        raise ValueError("no JSON schema: a table is needed")
    try:
        canonical_json(schema)
    except TypeError as error:
        raise ValueError(f"no JSON schema: {error}") from error
    kind = _find_dialect(schema)
    if kind is None:
        raise ValueError(f"no JSON schema: $schema {schema['$schema']!r} is no version of JSON schema")
    try:
        kind.check_schema(schema)
        _check_references(schema)
    except SchemaError as error:
        raise ValueError(f"no JSON schema: {error.json_path}: {error.message}") from error


def _find_dialect(schema: dict[str, Any]) -> Any:
    """Return jsonschema's class for the version that a schema names, the newest where it names none."""
    if "$schema" not in schema:
        return Draft202012Validator
    unknown: Any = None
    return validators.validator_for(schema, default=unknown) if isinstance(schema["$schema"], str) else unknown


def _check_references(schema: dict[str, Any]) -> None:
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    to_do = [(resource, _OFFLINE.resolver_with_root(resource))]
    while to_do:
        resource, resolver = to_do.pop()
        reference = resource.contents.get("$ref") if isinstance(resource.contents, dict) else None
        if isinstance(reference, str):
            try:
                resolver.lookup(reference)
            except Unresolvable as error:
                what = f"$ref {reference!r} leads nowhere; it may only name what the schema itself holds"
                raise ValueError(f"no JSON schema: {what}") from error
        to_do += [(inner, resolver.in_subresource(inner)) for inner in resource.subresources()]


def parse(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, or not only; a key stands twice; a number is none or too long.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant)


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def find_violation(value: Any, schema: str) -> str | None:
    """Return where and how a value breaks a schema ("$.team: 'x' is not one of [...]"), None where it does not.

    Args:
        value: parsed JSON.
        schema: checked, as canonical JSON.

    Raises:
        DatasetError: a `pattern` of the schema takes too long.
    """
    validator = _make_validator(schema)
    try:
        if validator.is_valid(value):
            return None
        error = best_match(validator.iter_errors(value))
    except (RecursionError, OverflowError, Unresolvable) as failure:
        return f"cannot be checked: {type(failure).__name__}: {failure}"
    return f"{error.json_path}: {error.message}"


@functools.lru_cache(maxsize=8)
def _make_validator(schema: str) -> Any:
    contents = json.loads(schema)
    return validators.extend(_find_dialect(contents), {"pattern": _check_pattern})(contents, registry=_OFFLINE)


def _check_pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    """Do what jsonschema's own does, but not for ever: it uses `re`, as it still does for the names of properties."""
    if isinstance(instance, str) and not search(pattern, instance, "json_schema"):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")
