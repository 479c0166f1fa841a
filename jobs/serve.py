"""Serve a task's distilled models in the foreground, following their aliases; Ctrl-C ends it.

python -m jobs.serve jobs/configs/triage.toml student.poll_seconds=5
"""

import time
from collections.abc import Sequence
from typing import Any

import httpx
from pydantic import Field

from jobs import task
from jobs.capacity import cache_bytes, require, require_here, require_room
from jobs.places import find_model, model_places
from jobs.progress import show_stage
from jobs.runtime import (
    ClusterConfig,
    claim_application,
    connect,
    disconnect,
    is_own_cluster,
    name_application,
    require_shared,
    run_main,
    start_http,
)
from raydistill.core.errors import ConfigError, ServiceError
from raydistill.core.keys import read_key
from raydistill.core.preflight import check_storage
from raydistill.core.records import Version
from raydistill.core.uris import absolute
from raydistill.engine.config import EngineConfig

WAIT_SECONDS = 120


class StudentTable(EngineConfig):
    """The `[student]` table."""

    url: str | None = None
    """Where a long-lived student is served already; by default the job starts its own."""
    poll_seconds: float = Field(2.0, gt=0)
    """How often a replica looks where the aliases point."""


def start_student(
    task_config: task.TaskConfig, table: StudentTable, cluster: ClusterConfig, base_url: str, job: str
) -> str:
    """Start the student's application for a task and return its URL.

    Args:
        task_config: which models to serve.
        table: the engine's settings.
        cluster: the connected one.
        base_url: of its Serve front.
        job: "serve" or "distill": each has a student of its own.
    """
    from raydistill.serving import app

    engine = EngineConfig.model_validate(table.model_dump(exclude={"url", "poll_seconds"}))
    if engine.adapter_mode == "merged" and engine.merged_alias is None:
        engine = engine.model_copy(update={"merged_alias": f"{task_config.name}/final"})
    application = claim_application("student", cluster, _purpose(task_config, job))
    with show_stage("student: starting"):
        app.start(task_config.student_model, task_config.storage, engine, table.poll_seconds, application)
    return f"{base_url}{application[1]}".rstrip("/")


def _purpose(task_config: task.TaskConfig, job: str) -> str:
    return f"{job} {task_config.name} {absolute(task_config.storage)}"


def stop_student(task_config: task.TaskConfig, cluster: ClusterConfig, job: str) -> None:
    """Stop what `start_student` left on a shared cluster, if anything; `disconnect` ends a job's own cluster whole."""
    import ray
    from ray import serve

    if is_own_cluster(cluster) or not ray.is_initialized():
        return
    name = name_application("student", cluster, _purpose(task_config, job))[0]
    if name in serve.status().applications:  # empty where Serve does not run: then nothing was started
        serve.delete(name)


def read_status(url: str) -> dict[str, Any]:
    """Return what a student's front says of itself; the key is sent where there is one."""
    key = read_key()
    headers = {"x-api-key": key} if key else {}
    return httpx.get(f"{url}/status", headers=headers, timeout=30).raise_for_status().json()


def wait_for_version(url: str, alias: str, version: Version, timeout_seconds: float = WAIT_SECONDS) -> bool:
    """Wait until every replica of the student serves a version under an alias.

    Args:
        url: of the student's front.
        alias: like "triage/candidate".
        version: what the alias was moved to.
        timeout_seconds: how long to wait at most.

    Returns:
        False where no replica runs, as autoscaling to zero allows: the next one is up when it has loaded the version.

    Raises:
        ServiceError: a replica refused it, with the reason, or it did not come in time.
    """
    wanted, label = f"{version.name}/{version.label}@{version.content_digest}", f"{version.name}/{version.label}"
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            status: dict[str, Any] = read_status(url)
        except (httpx.HTTPError, ValueError) as error:
            status = {"storage_error": f"{url}/status: {error}"}
        if status.get("aliases", {}).get(alias) == wanted:
            return True
        if status.get("asleep"):
            return False
        reason = _find_refusal(status, alias, version)
        if reason is not None:
            raise ServiceError(f"the student refused {label}: {reason}")
        if time.monotonic() > deadline:
            detail = _find_delay(status, label) or _describe_alias(status, alias)
            raise ServiceError(f"the student did not serve {wanted} within {timeout_seconds:g} s: {detail}.")
        time.sleep(0.2)


def _find_refusal(status: dict[str, Any], alias: str, version: Version) -> str | None:
    """Return why a replica refused a version, None where none did since the alias names it.

    A refusal of before is not counted: a replica tries a version again when an alias is moved to it once more.
    """
    for replica in status.get("replicas") or [status]:
        reason = replica.get("refused", {}).get(f"{version.name}/{version.label}")
        if reason is not None and replica.get("wanted", {}).get(alias, version.label) == version.label:
            return reason
    return None


def _find_delay(status: dict[str, Any], label: str) -> str | None:
    """Return what a replica cannot read, the registry or the version, or since when it loads the version."""
    told = [status, *status.get("replicas", [])]
    faults = [fault for one in told for fault in (one.get("storage_error"), one.get("unread", {}).get(label)) if fault]
    faults += [f"it is being loaded since {one['loading'][label]}" for one in told if label in one.get("loading", {})]
    return faults[0] if faults else None


def _describe_alias(status: dict[str, Any], alias: str) -> str:
    """Return what each replica serves under an alias, in one sentence's part."""
    served = [replica.get("aliases", {}).get(alias, "not served") for replica in status.get("replicas") or [status]]
    return f"{alias} is " + " and ".join(
        f"{name} on {served.count(name)} of {len(served)}" for name in dict.fromkeys(served)
    )


def main(argv: Sequence[str]) -> None:
    """Serve until interrupted."""
    found, sections = task.load(argv, {"student": StudentTable, "cluster": ClusterConfig}, "student")
    student, cluster = sections["student"], sections["cluster"]
    assert isinstance(student, StudentTable) and isinstance(cluster, ClusterConfig)
    if found is None:
        raise ConfigError("serve needs a task file: python -m jobs.serve jobs/configs/triage.toml")
    check_storage("task.storage", found.storage, read_only=True)  # a student follows the aliases, it moves none
    find_model(found.student_model)
    cpus = 2 * student.max_replicas + 1
    require_here("serve", cluster, cpus, [student])
    try:
        connect(cluster)
        places = [("task.storage", found.storage), *model_places("student_model", found.student_model)]
        require_shared(places, cluster)
        memory_bytes = cache_bytes(cluster, student)
        require("serve", cpus=cpus, gpus=student.count_gpus(), memory_bytes=memory_bytes, cluster=cluster)
        require_room("the student", student.max_replicas, student.replica_size(), cluster)
        url = start_student(found, student, cluster, start_http(cluster), "serve")
        status = read_status(url)
        for alias, exact in status["aliases"].items():
            print(f"{alias} -> {exact}")
        if not status["aliases"]:
            print(f"no model below {found.storage}/models yet: python -m jobs.distill TASK.toml makes one")
        print(f"ready at {url} (Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping")
    finally:
        stop_student(found, cluster, "serve")
        disconnect(cluster)


if __name__ == "__main__":
    run_main(main)
