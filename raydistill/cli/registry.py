"""What the registry's commands tell, as plain documents: the same that `--json` prints."""

import dataclasses
from pathlib import PurePosixPath
from typing import Any

from raydistill.core import storage as stores
from raydistill.core.errors import NotFoundError
from raydistill.core.records import Version
from raydistill.core.uris import absolute, check_name, is_remote, join
from raydistill.registry.aliases import Aliases, read_aliases
from raydistill.registry.probe import probe_shift
from raydistill.registry.resolve import promote, resolve, rollback
from raydistill.registry.versions import inspect_versions, list_labels, read_version

Document = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Waiting:
    """That a move is to be waited for: until every replica of a service serves the version.

    Attributes:
        url: of the service; None: RAYDISTILL_BASE_URL, or this machine's port 8000.
        timeout_seconds: how long at most.
    """

    url: str | None
    timeout_seconds: float


def find_model_uri(model: str, storage: str) -> str:
    """Return the registry folder of a model, which holds at least one version that was begun.

    Args:
        model: its folder or s3:// URI, or its name below ROOT/models.
        storage: ROOT.

    Raises:
        NotFoundError: there is no such model; the message names those beside it.
    """
    is_place = is_remote(model) or "/" in model or model.startswith((".", "~"))
    uri = absolute(model) if is_place else join(absolute(storage), "models", check_name(model))
    if not list_labels(uri):
        parent, _, name = uri.rpartition("/")
        known = ", ".join(stores.list_names(parent)) or "none"
        raise NotFoundError(
            f"{parent} holds no model {name!r}; known models: {known}. Is --storage (RAYDISTILL_STORAGE) right?"
        )
    return uri


def describe_versions(uri: str) -> Document:
    """Return a model's versions with their state: published, unfinished, deleted or damaged."""
    aliases = read_aliases(uri)
    found: list[Document] = []
    for label, version in inspect_versions(uri):
        entry: Document = {"version": label, "aliases": _pointing(aliases, label)}
        if isinstance(version, Version):
            entry |= {"state": "published", **_summarise(version)}
        elif version is not None:
            entry |= {"state": "damaged", "reason": str(version)}
        else:
            entry["state"] = "deleted" if label in aliases.deleted else "unfinished"
        found.append(entry)
    return {"model": uri, "versions": found}


def _pointing(aliases: Aliases, label: str) -> list[str]:
    return sorted(alias for alias, target in aliases.mapping.items() if target == label)


def _summarise(version: Version) -> Document:
    return {
        "base_model": version.base_model,
        "rank": version.lora["rank"],
        "modules": version.lora["modules"],
        "bytes": sum(entry.bytes for entry in version.files),
        "verifiable": version.verifiable,
        "probe_shift_nats": round(probe_shift(version.probe), 3),
        "dataset_fingerprint": version.dataset_fingerprint,
        "metrics": version.metrics,
    }


def describe_aliases(uri: str) -> Document:
    """Return where a model's aliases point, since when, and every move."""
    found = read_aliases(uri)
    pointers = {}
    for alias, label in sorted(found.mapping.items()):
        last = (found.moves(alias) or [{}])[-1]
        pointers[alias] = {"version": label, "since": last.get("time"), "by": last.get("by")}
    return {"model": uri, "aliases": pointers, "history": found.history}


def describe_version(uri: str, ref: str) -> Document:
    """Return everything that is known of one version, named by its label or by an alias."""
    return _describe(uri, resolve(uri, ref))


def _describe(uri: str, version: Version) -> Document:
    return {
        "model": uri,
        "version": version.label,
        "served_as": f"{version.name}/{version.label}@{version.content_digest}",
        "aliases": _pointing(read_aliases(uri), version.label),
        "probe_shift_nats": round(probe_shift(version.probe), 3),
        "record": dataclasses.asdict(version),
    }


def promote_version(uri: str, ref: str, alias: str, force: bool, waiting: Waiting | None) -> Document:
    """Move an alias to a version, named by its label or by another alias; see `registry.resolve.promote`."""
    before = read_aliases(uri)
    version = resolve(uri, ref)
    _check_service(waiting)
    promote(uri, alias, version.label, force, seen=before)
    return _finish_move(uri, alias, before, version, waiting)


def rollback_alias(uri: str, alias: str, to: str | None, waiting: Waiting | None) -> Document:
    """Move an alias back; see `registry.resolve.rollback`."""
    _check_service(waiting)
    before = read_aliases(uri)
    after = rollback(uri, alias, to)
    return _finish_move(uri, alias, before, read_version(uri, after.mapping[alias]), waiting)


def _check_service(waiting: Waiting | None) -> None:
    """Ask the service before anything is moved: one that does not answer could not be waited for."""
    if waiting is not None:
        from raydistill.cli import service

        service.read_status(waiting.url)


def _finish_move(uri: str, alias: str, before: Aliases, version: Version, waiting: Waiting | None) -> Document:
    served = None
    if waiting is not None:
        from raydistill.cli import service

        served = service.wait_for_version(waiting.url, f"{version.name}/{alias}", version, waiting.timeout_seconds)
    return {
        "model": uri,
        "alias": alias,
        "from": before.mapping.get(alias),
        "to": version.label,
        "name": PurePosixPath(uri).name,
        "served": served,
    }


def import_adapter(values: Document) -> Document:
    """Make a version of a foreign adapter and describe it; loads torch."""
    from jobs import import_adapter as job
    from jobs.runtime import set_up_logging
    from raydistill.core.config import validate

    set_up_logging()
    config = validate(job.ImportConfig, values, "command line")
    version = job.run(config)
    return _describe(join(absolute(config.storage), "models", version.name), version)
