"""What create_data is to ask and into which folder: made and checked without Ray, before anything is started."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from jobs.data_config import CreateDataConfig
from jobs.faults import collect, raise_all
from jobs.places import find_model
from raydistill.core import storage
from raydistill.core.answers import Commit
from raydistill.core.errors import NotFoundError, RaydistillError
from raydistill.core.idset import contains, pack_ids
from raydistill.core.models import model_revision
from raydistill.core.preflight import check_storage
from raydistill.core.prompts import Prompt, load_prompt
from raydistill.core.records import Drop, Manifest, Query, digest
from raydistill.core.uris import absolute, join
from raydistill.dataset.judge import Rubric, compile_rubric
from raydistill.dataset.keep import Origin, keep_table
from raydistill.dataset.layout import folder_of
from raydistill.dataset.ledger import find_unnamed, read_marks
from raydistill.dataset.pick import pick_rows
from raydistill.dataset.read import read_manifest
from raydistill.dataset.rules import Rules, compile_rules
from raydistill.dataset.sieve import open_judge
from raydistill.dataset.spending import read_spent, with_spent
from raydistill.dataset.write import check_output
from raydistill.queries.index import QueryIndex, scan_queries
from raydistill.queries.near import find_near_duplicates, to_drop
from raydistill.queries.read import iter_queries
from raydistill.teacher.rows import Choice, check_count, choose_rows, render_messages

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from raydistill.renderers import Renderer

pc: Any = pyarrow.compute
EXPANDED = "expanded.jsonl"  # in a dataset's folder: the queries that the teacher wrote

QuerySource = Callable[[], Iterable[Query]]  # may be called again, and gives the same


@dataclass(frozen=True)
class Queries:
    """Where queries come from.

    Attributes:
        given: those that may be asked.
        apart: those that a query which the teacher writes may not resemble: the held-out ones.
    """

    given: QuerySource
    apart: QuerySource = tuple


@dataclass(frozen=True)
class Teacher:
    """A teacher that has been started.

    Attributes:
        handle: of its engine.
        max_replicas: that it may come to have.
    """

    handle: "DeploymentHandle"
    max_replicas: int


@dataclass(frozen=True)
class Plan:
    """What is to be asked and into which folder; made without Ray, and nothing is written but a passing probe.

    Attributes:
        folder: the dataset's.
        source: of the queries.
        index: what is known of them.
        near: queries that are not asked, because they resemble others.
        choice: which (query, sample)s.
        rules: what an answer must be.
        rubric: by which a judge grades answers; None where nothing is judged.
        num_short: how many queries the teacher has to write before there are enough; nothing is chosen until then.
        draft: the manifest so far.
    """

    folder: str
    prompt: Prompt
    renderer: "Renderer"
    source: QuerySource
    index: QueryIndex
    near: list[Drop]
    choice: Choice
    rules: Rules
    rubric: Rubric | None
    num_short: int
    draft: Manifest


@dataclass(frozen=True)
class Standing:
    """How far the plan's ledger is.

    Attributes:
        manifest: as the plan's draft, with what is there already.
        unnamed: commits that the manifest does not name yet.
        done: sorted packed ids of (query, sample)s that need not be asked.
        num_missing: (query, sample)s of the plan that are not done.
    """

    manifest: Manifest
    unnamed: list[Commit]
    done: np.ndarray
    num_missing: int


@dataclass(frozen=True)
class Parts:
    """What a plan is made of, each part sound by itself."""

    prompt: Prompt
    output: str
    found: "_Found"
    rules: Rules
    rubric: Rubric | None


def find_parts(config: CreateDataConfig, queries: Queries | None = None) -> Parts:
    """Return what a plan is made of; all that is wrong with it is told at once. Of models no weights are fetched."""
    faults: list[RaydistillError] = []
    prompt = collect(faults, lambda: load_prompt(config.prompt))
    output = collect(faults, lambda: absolute(config.output_file))
    if output is not None:
        collect(faults, lambda: check_storage("output_file", folder_of(output)))
    found = collect(faults, lambda: _find_queries(config, queries, None if faults else folder_of(output or "")))
    rules = collect(faults, lambda: compile_rules(config.quality, config.judge))
    rubric = collect(faults, lambda: compile_rubric(config.judge))
    collect(faults, lambda: find_model(config.teacher_model, weights=False))
    raise_all(faults)
    assert prompt is not None and found is not None and output is not None and rules is not None
    return Parts(prompt, output, found, rules, rubric)


def make_plan(config: CreateDataConfig, queries: Queries | None = None, parts: Parts | None = None) -> Plan:
    """Return what is to be asked; everything about it that can be wrong is found here, without Ray; nothing is left.

    Args:
        config: what to ask and where to.
        queries: instead of those of config.queries.
        parts: of `find_parts`, where they were found already.
    """
    parts = parts or find_parts(config, queries)
    prompt, found = parts.prompt, parts.found
    model_dir = find_model(config.teacher_model)

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
    determined_by = {key: value for key, value in teacher.items() if key != "model"}
    sampling = config.sampling()
    fingerprint = digest({"prompt": prompt.digest, "teacher": determined_by, "sampling": sampling})
    for query in found.index.role_examples.values():
        render_messages(query.messages, prompt, renderer)  # a template that refuses a sequence of roles says so now
    folder = folder_of(parts.output)
    check_output(parts.output, folder, fingerprint)
    num_rows = 0 if found.num_short else config.num_examples
    choice = choose_rows(found.ids, num_rows, config.num_samples, config.seed, fingerprint)
    counts = {
        "asked": num_rows,
        "answered": 0,
        "kept": 0,
        "dropped": {},
        "not_asked": dict(Counter(drop.reason for drop in found.near)),
        "merged_queries": found.index.num_merged,
    }
    tokens = {"prompt": 0, "cached": 0, "completion": 0}
    prices = config.prices.model_dump() if config.prices is not None else None
    draft = Manifest(fingerprint, False, prompt.digest, teacher, sampling, counts, tokens, prices=prices)
    return Plan(
        folder=folder,
        prompt=prompt,
        renderer=renderer,
        source=found.source,
        index=found.index,
        near=found.near,
        choice=choice,
        rules=parts.rules,
        rubric=parts.rubric,
        num_short=found.num_short,
        draft=draft,
    )


@dataclass(frozen=True)
class _Found:
    source: QuerySource
    index: QueryIndex
    near: list[Drop]
    ids: np.ndarray  # of the queries that may be asked
    num_short: int


def _find_queries(config: CreateDataConfig, queries: Queries | None, folder: str | None) -> _Found:
    """Return the queries that are given and those that the teacher wrote in an earlier run.

    Args:
        config: names the given ones.
        queries: instead of those.
        folder: the dataset's; None where that cannot be looked into.
    """
    given = (queries or given_queries(config)).given
    written = join(folder, EXPANDED) if folder is not None else None

    def source() -> Iterator[Query]:
        yield from given()
        if written is not None and config.expand.enabled and storage.exists(written):
            yield from iter_queries(written)

    index = scan_queries(source(), may_be_empty=config.expand.enabled)
    near: list[Drop] = []
    ids = index.ids
    if config.near_duplicates is not None:
        near = [to_drop(found) for found in find_near_duplicates(source(), config.near_duplicates)]
        ids = ids[~contains(np.sort(pack_ids(drop.query_id for drop in near)), ids)]
    num_short = max(0, -(-config.num_examples // config.num_samples) - len(ids))
    if num_short and not config.expand.enabled:
        check_count(len(ids), config.num_examples, config.num_samples)
    return _Found(source, index, near, ids, num_short)


def given_queries(config: CreateDataConfig) -> Queries:
    """Return the queries that the configuration names; none where the teacher is to write them all."""
    path = config.queries
    return Queries(tuple if path is None else lambda: iter_queries(path))


def go_on_from(plan: Plan) -> Manifest:
    """Return the plan's draft with what its folder's manifest names already."""
    try:
        before = read_manifest(plan.folder)
    except NotFoundError:
        return with_spent(plan.draft, {})
    counts = {**plan.draft.counts, **{key: before.counts[key] for key in ("answered", "kept", "dropped")}}
    manifest = dataclasses.replace(plan.draft, counts=counts, tokens=before.tokens, answers=before.answers)
    return with_spent(manifest, read_spent(plan.folder, before))


def read_standing(plan: Plan, retry_failed: bool) -> Standing:
    """Return how far the plan's ledger is; nothing is written."""
    manifest = go_on_from(plan)
    unnamed = find_unnamed(plan.folder, manifest.answers, Origin.of(plan.draft), plan.rules)
    marks = read_marks(plan.folder, [*manifest.answers, *(commit.shard for commit in unnamed)])
    done = marks.ids[~marks.failed] if retry_failed else marks.ids
    num_done = int(contains(done, plan.choice.row_ids()).sum()) if len(done) else 0
    return Standing(manifest, unnamed, done, plan.choice.num_rows - num_done)


def is_answered(plan: Plan, retry_failed: bool) -> bool:
    """Return whether there is nothing to ask, the judge included."""
    if plan.num_short or (standing := read_standing(plan, retry_failed)).num_missing:
        return False
    return plan.rubric is None or not any(True for _ in find_unjudged(plan, plan.rubric, standing, retry_failed))


def find_unjudged(plan: Plan, rubric: Rubric, standing: Standing, retry_failed: bool) -> Iterator[pa.Table]:
    """Yield tables of the answers that the rules keep and of which a judge has said nothing by this rubric.

    Args:
        plan: whose answers.
        rubric: by which they are judged.
        standing: of the ledger.
        retry_failed: whether a judge's reply that did not come is to be asked for again.
    """
    origin = Origin.of(plan.draft)
    judge = open_judge(plan.folder, rubric, origin)
    shards = [*standing.manifest.answers, *(commit.shard for commit in standing.unnamed)]
    rules = dataclasses.replace(plan.rules, threshold=None)
    for answers in pick_rows(plan.folder, shards, plan.choice.row_ids()):
        kept = keep_table(answers, origin, rules)[0]["id"]
        unjudged = judge.find_unjudged(answers.filter(pc.is_in(answers["id"], kept.combine_chunks())), retry_failed)
        if unjudged.num_rows:
            yield unjudged
