"""What a replica and the front count for Prometheus, by alias and version: the one list of our series.

Ray exports them on each node's metrics port as `ray_raydistill_...`, with Serve's own labels application, deployment
and replica beside ours. `docs/serving.md` has the table. Aliases come from the registry, never from a request's text,
so that nobody can make series by asking for names.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

BASE = "base"  # alias and version of the bare base model, whose name may be a long path
SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600]

_BY_VERSION = ("alias", "version")
_SERIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "requests": ("Counter", "Rows that ended, by how: stop, length, error, aborted.", (*_BY_VERSION, "outcome")),
    "prompt_tokens": ("Counter", "Prompt tokens of rows that ended.", _BY_VERSION),
    "cached_tokens": ("Counter", "Prompt tokens of these that the prefix cache held.", _BY_VERSION),
    "completion_tokens": ("Counter", "Tokens that were generated.", _BY_VERSION),
    "prompt_tokens_saved": ("Counter", "Tokens of P that rows did not have to carry.", _BY_VERSION),
    "request_seconds": ("Histogram", "From a row's arrival at the replica to its end.", _BY_VERSION),
    "first_token_seconds": ("Histogram", "From a row's arrival at the replica to its first token.", _BY_VERSION),
    "active_version": (
        "Gauge",
        "1: an alias means this version on this replica; 0: it did.",
        _BY_VERSION,
    ),
    "loads": ("Counter", "Versions that passed every check and were loaded.", ("version",)),
    "refusals": ("Counter", "Versions that were refused, by the check that they failed.", ("version", "reason")),
    "swap_seconds": (
        "Histogram",
        "A swap, by part: download, digests, load, probe, flip, total.",
        (*_BY_VERSION, "part"),
    ),
    "storage_errors": ("Counter", "Looks at the registry that failed.", ()),
    "http_responses": (
        "Counter",
        "Answers of the front; code is empty where all is well.",
        ("route", "status", "code"),
    ),
    "waiting_rows": ("Gauge", "Rows that the front has handed to replicas and not got back.", ()),
    "retries": ("Counter", "Requests that were tried again since their replica died.", ("route",)),
}


@cache
def _series(name: str) -> Any:
    """Return one metric, made when it is first used: in a replica it takes Serve's labels along."""
    from ray.serve import metrics

    kind, description, labels = _SERIES[name]
    extra = {"boundaries": SECONDS} if kind == "Histogram" else {}
    return getattr(metrics, kind)(f"raydistill_{name}", description=description, tag_keys=labels, **extra)


def _count(name: str, number: float, **labels: str) -> None:
    if number > 0:  # Ray refuses to add nothing
        _series(name).inc(number, labels)


def count_row(
    alias: str, version: str, outcome: str, tokens: Mapping[str, int], seconds: Mapping[str, float | None]
) -> None:
    """Count one row that ended.

    Args:
        alias: that was asked for, as `name/alias`; of an exact version its own name, BASE for the base model.
        version: that answered, as `name/v0001@digest`, or BASE.
        outcome: stop, length, error or aborted.
        tokens: prompt, cached, completion, saved; those that are known.
        seconds: request and first_token; None where it had none.
    """
    _count("requests", 1, alias=alias, version=version, outcome=outcome)
    for kind, name in _TOKENS.items():
        _count(name, tokens.get(kind, 0), alias=alias, version=version)
    for kind, value in seconds.items():
        if value is not None:
            _series(f"{kind}_seconds").observe(value, {"alias": alias, "version": version})


_TOKENS = {
    "prompt": "prompt_tokens",
    "cached": "cached_tokens",
    "completion": "completion_tokens",
    "saved": "prompt_tokens_saved",
}


def count_load(version: str) -> None:
    """Count a version that passed every check and is in the engine."""
    _count("loads", 1, version=version)


def count_refusal(version: str, reason: str) -> None:
    """Count a version that was refused.

    Args:
        version: as `name/v0001`.
        reason: the part that failed: record, digests, checks (base, template, shapes, rank, weights), load or probe.
    """
    _count("refusals", 1, version=version, reason=reason)


def count_storage_error() -> None:
    """Count a look at the registry that failed."""
    _count("storage_errors", 1)


def set_active(alias: str, version: str, before: str | None = None) -> None:
    """Say which version an alias means now, and that it no longer means the one before.

    Args:
        alias: as `name/alias`.
        version: as `name/v0001@digest`; "" where the alias is gone.
        before: the version it meant until now, None where there was none.
    """
    if before and before != version:
        _series("active_version").set(0, {"alias": alias, "version": before})
    if version:
        _series("active_version").set(1, {"alias": alias, "version": version})


def observe_swap(alias: str, version: str, seconds: Mapping[str, float]) -> None:
    """Record how long a swap took.

    Args:
        alias: as `name/alias`.
        version: as `name/v0001@digest`.
        seconds: by part (record, download, digests, checks, load, probe, flip), `total` from noticing the move on.
    """
    for part, value in seconds.items():
        _series("swap_seconds").observe(value, {"alias": alias, "version": version, "part": part})


def count_response(route: str, status: int, code: str) -> None:
    """Count an answer of the front; `code` is "" where it is no error."""
    _count("http_responses", 1, route=route, status=str(status), code=code)


def count_retry(route: str) -> None:
    """Count a request that is tried on another replica."""
    _count("retries", 1, route=route)


def set_waiting(rows: int) -> None:
    """Say how many rows are at the replicas or wait for one."""
    _series("waiting_rows").set(rows)
