"""Distil a prompt end to end: create_data, train, publish, evaluate as `candidate`, then `final`.

    python -m jobs.distill jobs/configs/triage.toml
    python -m jobs.distill jobs/configs/triage.toml create_data.num_examples=20 train.num_epochs=1

Held-out queries are never asked for training. The same command again goes on where an earlier one ended.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs import create_data, data_plan, evaluate, train
from jobs.budget import find_overrun
from jobs.capacity import cache_bytes, require, require_here, require_room
from jobs.data_plan import Queries
from jobs.distill_input import Settings, check_input, read_settings
from jobs.places import Place
from jobs.progress import show_stage
from jobs.runtime import (
    begin_work,
    connect,
    disconnect,
    require_shared,
    run_main,
    start_http,
)
from jobs.serve import StudentTable, start_student, stop_student, wait_for_version
from jobs.teacher_application import open_teacher
from raydistill.client.service import ServiceClient
from raydistill.core.prompts import load_prompt
from raydistill.core.records import Manifest
from raydistill.core.uris import absolute, join
from raydistill.dataset.write import keep_prompt
from raydistill.registry.aliases import move_alias
from raydistill.registry.resolve import promote

if TYPE_CHECKING:
    from raydistill.evaluation.reference import Reference

ASK_TIMEOUT_SECONDS = 1200


@dataclass
class Clock:
    """Seconds per stage, as the report shows them."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the body takes to a stage."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 2)


def run(settings: Settings) -> dict[str, Any]:
    """Distil the task and return its report; the student is left serving, the caller disconnects.

    Raises:
        ConfigError, NotFoundError, ConflictError, CapacityError: bad input; nothing was started or written.
        ServiceError, TrainingError: it failed on the way; the same command goes on from there.
    """
    clock = Clock()
    engines = create_data.own_engines(settings.create_data, settings.teacher)
    engines += [] if settings.student.url else [settings.student]
    cpus, workers = _logical_cpus(settings), settings.train.min_workers
    require_here("distill", settings.cluster, cpus, engines, workers if settings.train.use_gpu else 0)
    queries = check_input(settings)
    with clock.stage("start"):
        connect(settings.cluster)
        require_shared(_list_places(settings), settings.cluster)
        gpus, memory_bytes = _count_gpus(settings), cache_bytes(settings.cluster, *engines)
        require("distill", cpus=cpus, gpus=gpus, memory_bytes=memory_bytes, cluster=settings.cluster)
        _require_room(settings)
        base_url = start_http(settings.cluster)
    begin_work()
    places = join(absolute(settings.task.storage), "prompts", settings.task.name)
    keep_prompt(load_prompt(settings.task.prompt), places)
    manifest, reference = _ask_teacher(settings, queries, clock)
    with clock.stage("train"):
        version = train.run(settings.train, cluster=settings.cluster)
    with clock.stage("serve"):
        student = student_to_measure(settings.student)
        url = student.url or start_student(settings.task, student, settings.cluster, base_url, "distill")
        move_alias(settings.models_uri, "candidate", version.label)
        wait_for_version(url, f"{settings.task.name}/candidate", version)
    facts = {"counts": evaluate.count_rows(manifest), "seconds": clock.seconds}
    config = settings.evaluate.model_copy(update={"student_url": url, "version": "candidate"})
    with ServiceClient(url) as service:
        ask = evaluate.ask_over_http(service, version.base_model)
        report = evaluate.run(config, settings.task, ask, reference, facts)
    promote(settings.models_uri, "final", version.label)
    wait_for_version(url, f"{settings.task.name}/final", version)
    return report


def student_to_measure(student: StudentTable) -> StudentTable:
    """Return the student's settings with the base beside its adapters, against which it is measured."""
    return student.model_copy(update={"adapter_mode": "lora"})


def _list_places(settings: Settings) -> list[Place]:
    return [
        ("task.storage", settings.task.storage),
        *create_data.list_places(settings.create_data),
        *train.list_places(settings.train),
    ]


def _logical_cpus(settings: Settings) -> int:
    """Return the CPUs that the largest stage holds.

    An engine's replica holds 2, an ingress and an actor 1 each, a training worker one for each of its threads.
    """
    teacher = create_data.logical_cpus(settings.create_data, settings.teacher)
    training = settings.train.min_workers * settings.train.threads_per_worker + 1
    return max(teacher, training, 2 * settings.student.max_replicas + 1)


def _count_gpus(settings: Settings) -> int:
    """Return the GPUs that the largest stage holds; training takes those that there are, unless it is told to."""
    training = settings.train.min_workers if settings.train.use_gpu else 0
    student = 0 if settings.student.url else settings.student.count_gpus()
    return max(create_data.count_gpus(settings.create_data, settings.teacher), training, student)


def _require_room(settings: Settings) -> None:
    """Refuse replicas and workers that no node has room for."""
    teacher, student, cluster = settings.teacher, settings.student, settings.cluster
    for own in create_data.own_engines(settings.create_data, teacher):
        require_room("the teacher", own.max_replicas, own.replica_size(), cluster)
    train.require_workers(settings.train, settings.train.use_gpu is True, cluster)
    if not student.url:
        require_room("the student", student.max_replicas, student.replica_size(), cluster)


def _ask_teacher(settings: Settings, queries: Queries, clock: Clock) -> "tuple[Manifest, Reference]":
    """Create the data and collect the teacher's answers on held-out queries; the teacher is up only here.

    Where an earlier run has both already, or the dataset has cost max_cost, no teacher is started.
    """
    reference, differing = evaluate.find_reference(settings.evaluate, settings.task)
    plan = data_plan.make_plan(settings.create_data, queries)
    is_answered = data_plan.is_answered(plan, settings.create_data.retry_failed)
    if not is_answered and (overrun := find_overrun(plan.folder, data_plan.go_on_from(plan), settings.create_data)):
        raise overrun
    if reference is not None and not differing and is_answered:
        with clock.stage("create_data"):
            return create_data.run(settings.create_data, queries=queries), reference
    with contextlib.ExitStack() as stack:
        with clock.stage("teacher_start"):
            teacher = open_teacher(plan, settings.create_data, settings.teacher, settings.cluster)
            handle, engine = stack.enter_context(teacher)
        with clock.stage("create_data"):
            manifest = create_data.run(settings.create_data, handle, queries, engine=engine, cluster=settings.cluster)
        with clock.stage("reference"), show_stage("teacher: held-out answers"):
            reference = evaluate.collect(
                settings.evaluate,
                settings.task,
                lambda rows: handle.generate.remote(rows).result(timeout_s=ASK_TIMEOUT_SECONDS),
            )
    return manifest, reference


def main(argv: Sequence[str]) -> None:
    """Run the job from a command line's arguments; no process of it is left behind."""
    settings = read_settings(argv)
    try:
        report = run(settings)
    finally:
        stop_student(settings.task, settings.cluster, "distill")
        disconnect(settings.cluster)
    evaluate.show(report, settings.task)


if __name__ == "__main__":
    run_main(main)
