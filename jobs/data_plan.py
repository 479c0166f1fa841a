"""What create_data is to ask and into which folder: made and checked without Ray, before anything is started."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from jobs.places import find_model
from raydistill.core.config import Section
from raydistill.core.errors import ConfigError, RaydistillError
from raydistill.core.models import model_revision
from raydistill.core.preflight import check_storage
from raydistill.core.prompts import Prompt, load_prompt
from raydistill.core.records import Manifest, Query, digest
from raydistill.core.uris import absolute
from raydistill.dataset.layout import folder_of
from raydistill.dataset.ledger import count_answers
from raydistill.dataset.write import check_output
from raydistill.engine.config import EngineConfig
from raydistill.queries.read import count_merged, read_queries
from raydistill.teacher.rows import AskRow, check_count, choose_rows, render_row

if TYPE_CHECKING:
    from raydistill.renderers import Renderer

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


def check_length(plan: Plan, config: CreateDataConfig, engine: EngineConfig) -> None:
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
