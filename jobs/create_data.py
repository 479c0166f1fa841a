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
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from jobs import task
from jobs.places import Place, find_model, model_places
from jobs.runtime import ClusterConfig, connect, name_application, require, require_shared, run_main, start_http
from raydistill.core import storage
from raydistill.core.config import Section
from raydistill.core.errors import ConfigError, RaydistillError
from raydistill.core.models import model_revision
from raydistill.core.preflight import check_storage
from raydistill.core.prompts import Prompt, load_prompt
from raydistill.core.records import Manifest, Query, digest
from raydistill.core.uris import absolute, join
from raydistill.dataset.finish import finish_dataset
from raydistill.dataset.layout import folder_of
from raydistill.dataset.ledger import count_answers
from raydistill.dataset.write import check_output, open_dataset, put_manifest
from raydistill.engine.config import EngineConfig
from raydistill.queries.read import count_merged, read_queries
from raydistill.teacher.rows import AskRow, check_count, choose_rows, render_row, write_requests

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from raydistill.renderers import Renderer

REQUESTS = "requests"
SPARE_STALL_SECONDS = 600.0  # for what Ray Data does besides asking: starting actors, reading, writing

Progress = Callable[[int, int], None]  # (rows answered so far, rows asked)
Found = TypeVar("Found")
logger = logging.getLogger(__name__)


class CreateDataConfig(Section):
    """The `[create_data]` table."""

    output_file: str
    """The dataset's folder (local or s3://); where it ends in .jsonl, that file, with the ledger in FILE.d/."""
    teacher_model: str
    """A folder, a hub id, s3:// or demo://."""
    num_examples: int = Field(ge=1)
    """(query, sample) pairs to ask."""
    queries: str
    """JSON lines with "text" or "messages"."""
    prompt: str
    """P: a .md, .txt or .json file."""
    num_samples: int = Field(default=1, ge=1)
    """How often a query may be asked."""
    temperature: float = Field(default=0.3, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=800, ge=1)
    """Of one answer; a longer one is dropped as truncated."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the rows and of the sampling of each."""
    renderer: Literal["chat", "raw"] = "chat"
    concurrency: int = Field(default=32, ge=1)
    """Rows at the teacher at a time."""
    num_actors: int = Field(default=2, ge=1)
    """Ray Data actors that share these rows."""
    commit_rows: int = Field(default=64, ge=1)
    """Rows that are committed together: a kill loses at most this many for each actor."""
    max_attempts: int = Field(default=3, ge=1)
    """How often a row is asked before it is dropped as failed."""
    timeout_seconds: float = Field(default=600, gt=0)
    """Of one attempt."""
    retry_failed: bool = False
    """Ask failed rows of an earlier run again."""


@dataclass(frozen=True)
class Plan:
    """What is to be asked and into which folder; made without Ray, and nothing is written but a passing probe."""

    folder: str
    prompt: Prompt
    renderer: "Renderer"
    rows: list[AskRow]
    draft: Manifest


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
    _check_length(plan, config, engine)
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


def make_plan(config: CreateDataConfig, queries: list[Query] | None = None) -> Plan:
    """Return what is to be asked; everything about it that can be wrong is found here, without Ray; nothing is left."""
    faults: list[RaydistillError] = []
    prompt = _collect(faults, lambda: load_prompt(config.prompt))
    found = _collect(faults, lambda: queries if queries is not None else read_queries(config.queries))
    if found is not None:
        _collect(faults, lambda: check_count(found, config.num_examples, config.num_samples))
    output = _collect(faults, lambda: absolute(config.output_file))
    if output is not None:
        _collect(faults, lambda: check_storage("output_file", folder_of(output)))
    # Weights may have to be fetched, so only where nothing else is wrong.
    model_dir = _collect(faults, lambda: find_model(config.teacher_model, weights=not faults))
    if faults:
        raise faults[0] if len(faults) == 1 else ConfigError("several faults:\n  - " + "\n  - ".join(map(str, faults)))
    assert prompt is not None and found is not None and model_dir is not None and output is not None

    from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest

    tokenizer = load_tokenizer(model_dir)
    renderer = get_renderer(config.renderer, tokenizer)
    teacher = {
        "model": config.teacher_model,
        "revision": model_revision(model_dir),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "template_digest": renderer.template_digest,
        "renderer": renderer.name,
    }
    sampling = {key: getattr(config, key) for key in ("temperature", "top_p", "max_tokens", "seed")}
    determined_by = {key: value for key, value in teacher.items() if key != "model"}
    fingerprint = digest({"prompt": prompt.digest, "teacher": determined_by, "sampling": sampling})
    rows = choose_rows(found, config.num_examples, config.num_samples, config.seed, fingerprint)
    for row in {tuple(message["role"] for message in row.query.messages): row for row in rows}.values():
        render_row(row, prompt, renderer)  # a template that refuses a sequence of roles says so now
    folder = folder_of(output)
    check_output(output, folder, fingerprint)
    counts = {"asked": len(rows), "answered": 0, "kept": 0, "dropped": {}, "merged_queries": count_merged(found)}
    tokens = {"prompt": 0, "cached": 0, "completion": 0}
    draft = Manifest(fingerprint, False, prompt.digest, teacher, sampling, counts, tokens)
    return Plan(folder, prompt, renderer, rows, draft)


def _collect(faults: list[RaydistillError], find: Callable[[], Found]) -> Found | None:
    try:
        return find()
    except RaydistillError as error:
        faults.append(error)
        return None


def find_missing(plan: Plan, retry_failed: bool) -> list[tuple[AskRow, int]]:
    """Return the rows that the ledger has no answer to, each with the number of times that it failed before."""
    good, failures = count_answers(plan.folder)
    return [
        (row, failures[row.id]) for row in plan.rows if row.id not in good and (retry_failed or row.id not in failures)
    ]


def is_answered(config: CreateDataConfig, queries: list[Query]) -> bool:
    """Return whether `run` would ask nothing."""
    return not find_missing(make_plan(config, queries), config.retry_failed)


def _check_length(plan: Plan, config: CreateDataConfig, engine: EngineConfig) -> None:
    """Refuse a P that leaves the teacher no room to answer even the shortest query."""
    shortest = min(plan.rows, key=lambda row: sum(len(message["content"]) for message in row.query.messages))
    num_tokens = len(render_row(shortest, plan.prompt, plan.renderer))
    if num_tokens >= engine.max_model_len:
        raise ConfigError(
            f"teacher.max_model_len: P and the shortest query take {num_tokens} tokens, and the teacher's longest "
            f"request is {engine.max_model_len}. Raise teacher.max_model_len above {num_tokens + config.max_tokens}."
        )
    if num_tokens + config.max_tokens > engine.max_model_len:
        logger.warning(
            "P and a query take %d tokens: of max_tokens=%d only %d fit into teacher.max_model_len=%d.",
            num_tokens,
            config.max_tokens,
            engine.max_model_len - num_tokens,
            engine.max_model_len,
        )


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
