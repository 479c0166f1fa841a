"""Ask a teacher with P in front of every query, and keep its good answers as a dataset without P.

    python -m jobs.create_data output_file=/tmp/triage.jsonl teacher_model=MODEL num_examples=1000 \
        prompt=triage.md queries=triage.queries.jsonl
    python -m jobs.create_data output_file=/tmp/analyst.jsonl teacher_model=MODEL num_examples=1000
    python -m jobs.create_data jobs/configs/triage.toml create_data.num_examples=20

The same command again asks only what is not answered yet; a larger num_examples only adds. Where neither a task file
nor prompt= nor queries= is given, P and queries are those of jobs/configs/analyst.toml.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from jobs import task
from jobs.data_plan import CreateDataConfig, Plan, check_length, find_missing, make_plan
from jobs.places import Place, model_places
from jobs.runtime import ClusterConfig, connect, name_application, require, require_shared, run_main, start_http
from raydistill.core import storage
from raydistill.core.records import Manifest, Query
from raydistill.core.uris import absolute, join
from raydistill.dataset.finish import finish_dataset
from raydistill.dataset.write import open_dataset, put_manifest
from raydistill.engine.config import EngineConfig
from raydistill.teacher.rows import AskRow, write_requests

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

REQUESTS = "requests"
SPARE_STALL_SECONDS = 600.0  # for what Ray Data does besides asking: starting actors, reading, writing

Progress = Callable[[int, int], None]  # (rows answered so far, rows asked)


def run(
    config: CreateDataConfig,
    handle: "DeploymentHandle | None" = None,
    queries: list[Query] | None = None,
    engine: EngineConfig | None = None,
    cluster: ClusterConfig | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Create or continue a dataset and return its finished manifest.

    Args:
        config: what to ask and where to.
        handle: of a started teacher's engine; None starts one where there is anything to ask, and stops it.
        queries: instead of those of the file config.queries.
        engine: settings of a teacher that is started here.
        cluster: where such a teacher runs.
        on_progress: called with (rows answered, rows to ask) after commits; None shows a progress bar.

    Raises:
        ConfigError, NotFoundError, ConflictError, CapacityError: bad input; nothing was started or written.
        ServiceError: the teacher did not start, or nothing moves any more.
        DatasetError: not one answer is usable.
    """
    engine = engine or EngineConfig.model_validate({})
    plan = make_plan(config, queries)
    missing = find_missing(plan, config.retry_failed)
    if not missing:
        return _finish(plan, config)
    if handle is not None:
        _ask(plan, missing, config, handle, on_progress)
        return _finish(plan, config)
    check_length(plan, config, engine)
    cluster = cluster or ClusterConfig.model_validate({})
    connect(cluster)
    require_shared(list_places(config), cluster)
    # A replica holds two logical CPUs and the ingress one; the checkpoint's filter, reading and writing one each.
    require("create_data", cpus=2 * engine.num_replicas + 1 + config.num_actors + 3, cluster=cluster)
    start_http(cluster)
    from raydistill.teacher import app

    application = name_application("teacher", cluster)
    own_handle = app.start(config.teacher_model, engine, application)
    try:
        _ask(plan, missing, config, own_handle, on_progress)
    finally:
        app.stop(application[0])
    return _finish(plan, config)


def list_places(config: CreateDataConfig) -> list[Place]:
    """Return the places that every node must see."""
    return [("create_data.output_file", config.output_file), *model_places("teacher_model", config.teacher_model)]


def _ask(
    plan: Plan,
    missing: list[tuple[AskRow, int]],
    config: CreateDataConfig,
    handle: "DeploymentHandle",
    on_progress: Progress | None,
) -> None:
    """Ask the missing rows and wait until each is committed to the ledger."""
    from raydistill.dataset.append import append_answers, checkpointed, watch
    from raydistill.teacher.ask import AskSettings, ask_rows, read_context_tokens

    num_actors = min(config.num_actors, config.concurrency, math.ceil(len(missing) / config.commit_rows))
    settings = AskSettings(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        in_flight=math.ceil(config.concurrency / num_actors),
        max_attempts=config.max_attempts,
        timeout_seconds=config.timeout_seconds,
        context_tokens=read_context_tokens(handle),
    )
    etag = open_dataset(plan.folder, plan.draft)
    requests = join(plan.folder, REQUESTS)
    names = write_requests(missing, plan.prompt, plan.renderer, requests)
    filesystem, path = storage.filesystem(requests)

    def work() -> None:
        with checkpointed(plan.folder):
            paths = [f"{path}/{name}" for name in names]
            asker = (handle, plan.renderer, settings)
            append_answers(ask_rows(paths, filesystem, asker, num_actors, config.commit_rows), plan.folder)

    before = plan.draft.counts["asked"] - len(missing)
    with _shown(on_progress, len(missing)) as report:
        for answered in watch(work, plan.folder, _stall_seconds(config)):
            counts = {**plan.draft.counts, "answered": before + answered}
            etag = put_manifest(plan.folder, dataclasses.replace(plan.draft, counts=counts), etag)
            report(answered, len(missing))
    for name in names:
        storage.delete(join(requests, name))


def _finish(plan: Plan, config: CreateDataConfig) -> Manifest:
    return finish_dataset(plan.folder, [row.id for row in plan.rows], plan.draft, absolute(config.output_file))


def _stall_seconds(config: CreateDataConfig) -> float:
    rounds = math.ceil(config.commit_rows / max(1, config.concurrency // config.num_actors))
    return rounds * config.max_attempts * config.timeout_seconds + SPARE_STALL_SECONDS


@contextlib.contextmanager
def _shown(on_progress: Progress | None, total: int) -> Iterator[Progress]:
    """Give the caller's progress function, or one that moves a bar on the terminal."""
    if on_progress is not None:
        yield on_progress
        return
    from rich.progress import Progress as Bar

    with Bar() as bar:
        bar_task = bar.add_task("asking the teacher", total=total)
        yield lambda answered, _total: bar.update(bar_task, completed=answered)


def main(argv: Sequence[str]) -> None:
    """Run the job from a command line's arguments."""
    tables = {"create_data": CreateDataConfig, "teacher": EngineConfig, "cluster": ClusterConfig}
    _, sections = task.load(task.add_example(argv), tables, "create_data")
    config, engine, cluster = (sections[table] for table in tables)
    assert isinstance(config, CreateDataConfig) and isinstance(engine, EngineConfig)
    assert isinstance(cluster, ClusterConfig)
    manifest = run(config, engine=engine, cluster=cluster)
    counts = manifest.counts
    dropped = counts["dropped"] or "none"
    print(f"{config.output_file}: {counts['kept']} of {counts['asked']} answers kept, dropped {dropped}.")


if __name__ == "__main__":
    run_main(main)
