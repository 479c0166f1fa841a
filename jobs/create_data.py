"""Ask a teacher with P in front of every query, and keep its good answers as a dataset without P.

    python -m jobs.create_data output_file=/tmp/triage.jsonl teacher_model=MODEL num_examples=1000 \
        prompt=triage.md queries=triage.queries.jsonl
    python -m jobs.create_data output_file=/tmp/analyst.jsonl teacher_model=MODEL num_examples=1000
    python -m jobs.create_data jobs/configs/triage.toml create_data.num_examples=20

The same command again asks only what is not answered yet; a larger num_examples only adds. Where neither a task file
nor prompt= nor queries= is given, P and queries are those of jobs/configs/analyst.toml.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import task
from jobs.budget import check_length, describe_writing, estimate_tokens, find_overrun
from jobs.capacity import cache_bytes, require, require_here, require_room
from jobs.data_config import CreateDataConfig
from jobs.data_plan import (
    Plan,
    Queries,
    Teacher,
    given_queries,
    go_on_from,
    is_answered,
    make_plan,
    read_standing,
)
from jobs.places import Place, model_places
from jobs.progress import show_asking, show_stage
from jobs.runtime import ClusterConfig, begin_work, connect, require_shared, run_main
from jobs.teacher_application import open_teacher
from raydistill.core.idset import contains, pack_ids
from raydistill.core.patience import patiently
from raydistill.core.records import Manifest
from raydistill.core.uris import absolute, is_remote, join
from raydistill.dataset.finish import check_first, finish_dataset
from raydistill.dataset.keep import Origin
from raydistill.dataset.layout import folder_of
from raydistill.dataset.ledger import LedgerWriter
from raydistill.dataset.shards import ROWS_PER_SHARD
from raydistill.dataset.sieve import JUDGEMENTS, Terms
from raydistill.dataset.write import keep_prompt
from raydistill.engine.config import EngineConfig
from raydistill.teacher.rows import REQUESTS, choose_rows, clear_requests, find_rows

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

Progress = Callable[[Manifest], None]  # told how far the ledger is
logger = logging.getLogger(__name__)


def run(
    config: CreateDataConfig,
    handle: "DeploymentHandle | None" = None,
    queries: Queries | None = None,
    engine: EngineConfig | None = None,
    cluster: ClusterConfig | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Create or continue a dataset and return its finished manifest.

    Args:
        config: what to ask and where to.
        handle: of a started teacher's engine; None takes the one that config names, or starts one and stops it, where
            there is anything to ask.
        queries: instead of those of config.queries.
        engine: settings of the teacher.
        cluster: where a teacher that is started here runs.
        on_progress: called with the manifest twice a second while rows are asked; None shows a progress line.

    Raises:
        ConfigError, NotFoundError, ConflictError, CapacityError: bad input; nothing was started or written.
        ServiceError: the teacher did not start, or nothing moves any more.
        QualityError: too few answers can be used.
        BudgetError: the dataset has cost max_cost.
    """
    engine = engine or EngineConfig.model_validate({})
    cluster = cluster or ClusterConfig.model_validate({})
    cpus, own = logical_cpus(config, engine), own_engines(config, engine)
    if handle is None and _is_new(config):  # a dataset that is there may need no teacher: only the plan knows
        require_here("create_data", cluster, cpus, own)
    plan = make_plan(config, queries)
    if is_answered(plan, config.retry_failed):
        return _finish(plan, config)
    if overrun := find_overrun(plan.folder, go_on_from(plan), config):
        raise overrun
    if handle is not None:
        return _create(plan, config, queries, Teacher(handle, engine.max_replicas), on_progress)
    if own:
        check_length(plan, config, engine)
    require_here("create_data", cluster, cpus, own)
    connect(cluster)
    require_shared(list_places(config), cluster)
    gpus, memory_bytes = count_gpus(config, engine), cache_bytes(cluster, *own)
    require("create_data", cpus=cpus, gpus=gpus, memory_bytes=memory_bytes, cluster=cluster)
    if own:
        require_room("the teacher", engine.max_replicas, engine.replica_size(), cluster)
    with open_teacher(plan, config, engine, cluster) as (found, its_engine):
        return _create(plan, config, queries, Teacher(found, its_engine.max_replicas), on_progress)


def _is_new(config: CreateDataConfig) -> bool:
    """Return whether there is surely no dataset yet, without a look into an object store."""
    return not is_remote(config.output_file) and not Path(folder_of(absolute(config.output_file))).exists()


def list_places(config: CreateDataConfig) -> list[Place]:
    """Return the places that every node must see."""
    return [("create_data.output_file", config.output_file), *model_places("teacher_model", config.teacher_model)]


def logical_cpus(config: CreateDataConfig, engine: EngineConfig) -> int:
    """Return the CPUs that Ray must have: a replica holds two, the ingress and each asking actor one, Ray Data one.

    Those of a teacher that runs already are its own matter.
    """
    teacher = 2 * engine.max_replicas + 1 if config.teacher_application is None else 0
    return teacher + config.count_actors(config.num_examples, engine.max_replicas) + 1


def count_gpus(config: CreateDataConfig, engine: EngineConfig) -> int:
    """Return the GPUs that Ray must have for the teacher; see `logical_cpus`."""
    return sum(own.count_gpus() for own in own_engines(config, engine))


def own_engines(config: CreateDataConfig, engine: EngineConfig) -> list[EngineConfig]:
    """Return the engines that the job starts itself: none where a teacher runs already."""
    return [engine] if config.teacher_application is None else []


def _create(
    plan: Plan,
    config: CreateDataConfig,
    queries: Queries | None,
    teacher: Teacher,
    on_progress: Progress | None,
) -> Manifest:
    """Ask what is missing and finish the dataset; where there are too few queries, the teacher writes some first."""
    from jobs.asking import Work, ask_missing
    from jobs.expanding import write_queries
    from jobs.judging import judge_answers
    from jobs.watching import Asker
    from raydistill.dataset.appending import OpenLedger

    begin_work()
    while plan.num_short:  # again where one that was written turns out to resemble another
        ledger = OpenLedger(plan.folder, go_on_from(plan))  # first: a folder without a manifest is refused
        keep_prompt(plan.prompt, join(plan.folder, "prompts"))
        given = queries or given_queries(config)
        logger.info("%s", describe_writing(plan, config, given.given()))
        with show_stage(f"teacher: writing {plan.num_short} queries"):
            write_queries(plan, config, teacher, given, ledger)
        plan = patiently(lambda: make_plan(config, queries))
    standing = read_standing(plan, config.retry_failed)
    logger.info("%s", estimate_tokens(plan, config, standing.num_missing).describe(config))
    ledger = OpenLedger(plan.folder, standing.manifest)
    keep_prompt(plan.prompt, join(plan.folder, "prompts"))
    ledger.add(standing.unnamed)
    first_ids = _choose_first(plan, config)
    if len(first_ids) and contains(standing.done, first_ids).all():
        check_first(plan.folder, ledger.manifest, first_ids, config.smoke_min_kept, plan.rules)
    if standing.num_missing:
        work = Work(
            prompt=plan.prompt,
            renderer=plan.renderer,
            rows=find_rows(plan.source(), plan.choice, standing.done),
            num_rows=standing.num_missing,
            writer=LedgerWriter(plan.folder, Origin.of(plan.draft), plan.rules, config.top_logprobs),
            first_ids=first_ids,
        )
        with _shown(on_progress, work.num_rows, ledger.manifest) as progress:
            ask_missing(Asker(config, teacher, ledger, progress), work)
    if plan.rubric is not None:
        judge_answers(plan, plan.rubric, config, teacher)
    return _finish(plan, config)


def _choose_first(plan: Plan, config: CreateDataConfig) -> np.ndarray:
    """Return the sorted packed ids of the (query, sample)s that are looked at before the rest is asked."""
    if not 0 < config.smoke_rows < config.num_examples:
        return pack_ids([])
    query_ids, fingerprint = plan.choice.ids, plan.choice.fingerprint
    first = choose_rows(query_ids, config.smoke_rows, config.num_samples, config.seed, fingerprint)
    return np.sort(first.row_ids())


def _finish(plan: Plan, config: CreateDataConfig) -> Manifest:
    """Finish the dataset; nothing is left of its request objects, those of a run that died behind the last answer."""
    manifest = _keep(plan, config)
    clear_requests(join(plan.folder, REQUESTS))
    if plan.rubric is not None:
        clear_requests(join(plan.folder, JUDGEMENTS, REQUESTS))
    return manifest


def _keep(plan: Plan, config: CreateDataConfig) -> Manifest:
    """Make the keep pass in this process, or, where it is large and Ray is there, in a process of its own."""
    terms = Terms(plan.rules, plan.rubric, plan.near, config.max_dropped_share)
    arguments = (plan.folder, plan.choice.row_ids(), plan.draft, absolute(config.output_file), terms)
    if plan.choice.num_rows <= ROWS_PER_SHARD:
        return finish_dataset(*arguments)
    import ray
    from ray.exceptions import RayTaskError

    if not ray.is_initialized():
        return finish_dataset(*arguments)
    task: Any = ray.remote(num_cpus=0)(finish_dataset)
    try:
        return ray.get(task.remote(*arguments))
    except RayTaskError as error:
        raise error.cause from error


@contextlib.contextmanager
def _shown(on_progress: Progress | None, num_rows: int, before: Manifest) -> Iterator[Progress]:
    """Give the caller's progress function, or one that keeps a line on the terminal or in the log."""
    if on_progress is not None:
        yield on_progress
        return
    with show_asking(num_rows, before) as progress:
        yield progress


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
    if manifest.cost is not None:
        print(f"All that was asked for it cost {manifest.cost:.4g}.")


if __name__ == "__main__":
    run_main(main)
