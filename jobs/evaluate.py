"""Evaluates a published version through the endpoint that serves it. Gives report.json, report.html and a table.

    python -m jobs.evaluate TASK.toml [student_url=http://127.0.0.1:8000] [version=candidate]

The teacher's answers come from ROOT/reports/NAME/reference.json, which distill saves while the teacher is up; where
there are none, `teacher_url=` names a running teacher, and they are collected from it.
"""

import json
import logging
import tempfile
import time
from typing import Any

from rich.console import Console

from jobs.progress import show_evaluation
from jobs.runtime import begin_work, run_main
from jobs.task import TaskConfig, load
from raydistill.client.service import SamplingClient, ServiceClient
from raydistill.core import storage
from raydistill.core.errors import ConfigError, DatasetError, NotFoundError, RaydistillError
from raydistill.core.models import model_revision, resolve_model
from raydistill.core.preflight import check_storage
from raydistill.core.prompts import load_prompt
from raydistill.core.records import Manifest, Query, TokenRequest, TokenResult, Usage, Version
from raydistill.core.uris import absolute, join
from raydistill.dataset.read import read_manifest
from raydistill.evaluation.config import EvaluateConfig
from raydistill.evaluation.evaluate import Subject, evaluate
from raydistill.evaluation.reference import (
    Ask,
    Reference,
    collect_reference,
    describe_asking,
    read_reference,
    write_reference,
)
from raydistill.evaluation.report import report_table, write_report
from raydistill.queries.read import read_queries
from raydistill.queries.split import split_queries
from raydistill.registry.fetch import fetch_version
from raydistill.registry.resolve import resolve
from raydistill.renderers import Renderer, get_renderer, load_tokenizer, tokenizer_digest
from raydistill.types import ModelInput, SampledSequence, SamplingParams

RESULT_TIMEOUT_SECONDS = 600

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> dict[str, Any]:
    """Evaluate what the command line says and return the report."""
    task, sections = load(argv, {"evaluate": EvaluateConfig}, "evaluate")
    config = sections["evaluate"]
    assert isinstance(config, EvaluateConfig)  # for the type checker
    if task is None:
        raise ConfigError("evaluate: give a task file: python -m jobs.evaluate TASK.toml [student_url=...]")
    check_storage("task.storage", task.storage)
    version = resolve(join(absolute(task.storage), "models", task.name), config.version)
    reference = get_reference(config, task)
    with ServiceClient(config.student_url) as service:
        report = run(config, task, ask_over_http(service, version.base_model), reference, read_facts(task, version))
    show(report, task)
    return report


def run(
    config: EvaluateConfig,
    task: TaskConfig,
    ask: Ask,
    reference: Reference,
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate `config.version` of the task's model, write the report into storage and return it.

    Args:
        config: the `[evaluate]` table.
        task: the `[task]` table.
        ask: asks the served endpoint; see `ask_over_http`.
        reference: the teacher's answers on the held-out queries.
        facts: `counts` and `seconds` of the stages before, for the report.
    """
    root = absolute(task.storage)
    uri = join(root, "models", task.name)
    version = resolve(uri, config.version)
    prompt = load_prompt(task.prompt)
    model_dir = resolve_model(version.base_model)
    teacher_dir = _find_teacher(reference) if config.kl else None
    with tempfile.TemporaryDirectory(prefix="raydistill-evaluate-") as folder, show_evaluation() as on_step:
        adapter_dir = str(fetch_version(uri, version, folder))
        subject = Subject(f"{task.name}/{config.version}", version, adapter_dir, model_dir, teacher_dir, prompt)
        report = evaluate(config, subject, reference, ask, facts, on_step)
    write_report(report, _report_uri(task, version.label))
    return report


def read_facts(task: TaskConfig, version: Version) -> dict[str, Any]:
    """Return `counts` and `seconds` of how a version was made, as far as they are known.

    They stand in its last report; where there is none, the counts are those of the task's dataset, if it is the one
    that the version was trained on.
    """
    try:
        report = json.loads(storage.read_bytes(join(_report_uri(task, version.label), "report.json")))
        return {"counts": report["counts"], "seconds": report["seconds"]}
    except NotFoundError:
        pass
    except (ValueError, TypeError, KeyError) as error:
        logger.warning("the last report on %s cannot be read (%r): its seconds are lost", version.label, error)
    try:
        manifest = read_manifest(join(absolute(task.storage), "datasets", task.name))
    except (NotFoundError, DatasetError):
        return {}
    return {"counts": count_rows(manifest)} if manifest.fingerprint == version.dataset_fingerprint else {}


def count_rows(manifest: Manifest) -> dict[str, Any]:
    """Return what a report says of a dataset: asked = kept + dropped."""
    return {key: manifest.counts[key] for key in ("asked", "kept", "dropped")}


def show(report: dict[str, Any], task: TaskConfig) -> None:
    """Print the report's table and where the whole of it is."""
    console = Console()
    console.print(report_table(report))
    console.print(f"The whole report: {_report_uri(task, report['model']['version'])}/report.html", soft_wrap=True)


def _report_uri(task: TaskConfig, label: str) -> str:
    return join(absolute(task.storage), "reports", task.name, label)


def get_reference(config: EvaluateConfig, task: TaskConfig) -> Reference:
    """Return the saved reference, or collect one from the teacher at `teacher_url` and save it.

    Raises:
        NotFoundError: none is saved and no teacher is named.
        ConfigError: the saved one was asked in another way and no teacher is named.
    """
    saved, differing = find_reference(config, task)
    if saved is not None and not differing:
        return saved
    if config.teacher_url is not None:
        with ServiceClient(config.teacher_url) as service:
            return collect(config, task, ask_over_http(service, task.teacher_model))
    remedy = "Run jobs.distill, which saves them, or name a running teacher with teacher_url=http://..."
    if saved is None:
        raise NotFoundError(
            f"{reference_uri(task)} does not exist: the teacher's answers on held-out queries are needed. {remedy}"
        )
    raise ConfigError(
        f"{reference_uri(task)} holds the teacher's answers for another {', '.join(differing)}; they are never mixed. "
        f"Put that back, or have them asked again. {remedy}"
    )


def find_reference(config: EvaluateConfig, task: TaskConfig) -> tuple[Reference | None, list[str]]:
    """Return the saved reference (None: there is none) and the names of the settings with which it was not asked."""
    place = reference_uri(task)
    if not storage.exists(place):
        return None, []
    saved = read_reference(place)
    _, teacher = _load_teacher(task)
    asking = describe_asking(config, _held_out(task), load_prompt(task.prompt), teacher)
    return saved, [name for name, value in asking.items() if saved.asked.get(name) != value]


def _load_teacher(task: TaskConfig) -> tuple[Renderer, dict[str, str]]:
    """Return the teacher's renderer and what identifies the teacher."""
    model_dir = resolve_model(task.teacher_model)
    tokenizer = load_tokenizer(model_dir)
    renderer = get_renderer("chat", tokenizer)
    return renderer, {
        "model": task.teacher_model,
        "revision": model_revision(model_dir),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "template_digest": renderer.template_digest,
    }


def _held_out(task: TaskConfig) -> list[Query]:
    return split_queries(read_queries(task.queries))[1]


def collect(config: EvaluateConfig, task: TaskConfig, ask: Ask) -> Reference:
    """Collect the teacher's answers on the task's held-out queries, save them and return them.

    Args:
        config: the `[evaluate]` table.
        task: the `[task]` table.
        ask: asks the teacher; P is in the rows.
    """
    renderer, teacher = _load_teacher(task)
    begin_work()
    reference = collect_reference(config, ask, _held_out(task), load_prompt(task.prompt), renderer, teacher)
    write_reference(reference, reference_uri(task))
    return reference


def reference_uri(task: TaskConfig) -> str:
    """Return where the teacher's answers on a task's held-out queries are kept."""
    return join(absolute(task.storage), "reports", task.name, "reference.json")


def _find_teacher(reference: Reference) -> str | None:
    try:
        model_dir = resolve_model(reference.teacher["model"])
    except NotFoundError as error:
        logger.warning("no KL is reported: %s", error.args[0])
        return None
    revision = model_revision(model_dir)
    if revision != reference.teacher["revision"]:
        logger.warning("no KL is reported: %s is not the revision that answered", reference.teacher["model"])
        return None
    return model_dir


def ask_over_http(service: ServiceClient, base_model: str) -> Ask:
    """Return a function that asks a served application through the client, all rows at once.

    Args:
        service: a client of the application.
        base_model: the name of the base model that it serves; rows with an empty `model` ask for it.
    """
    clients: dict[str, SamplingClient] = {}

    def ask(rows: list[TokenRequest]) -> list[TokenResult]:
        for name in {row.model for row in rows} - set(clients):
            clients[name] = (
                service.create_sampling_client(model_path=f"raydistill://{name}")
                if name
                else service.create_sampling_client(base_model=base_model)
            )
        started = time.monotonic()
        futures = [
            clients[row.model].sample(ModelInput.from_ints(row.tokens), 1, _sampling_params(row)) for row in rows
        ]
        results = []
        for row, future in zip(rows, futures, strict=True):
            try:
                answer = future.result(RESULT_TIMEOUT_SECONDS)
            except (RaydistillError, TimeoutError) as error:
                results.append(TokenResult([], [], "error", Usage(len(row.tokens), 0, 0), error=str(error)))
                continue
            results.append(_to_result(row, answer.sequences[0], answer.model, time.monotonic() - started))
        return results

    return ask


def _sampling_params(row: TokenRequest) -> SamplingParams:
    if row.top_logprobs is not None or row.score_token_ids or (row.stop and row.stop_token_ids):
        raise ConfigError("over HTTP rows have no top_logprobs, no score_token_ids and one kind of stop only.")
    stop: list[str] | list[int] | None = row.stop or row.stop_token_ids or None
    return SamplingParams(
        max_tokens=row.max_tokens,
        seed=row.seed,
        temperature=row.temperature,
        top_k=row.top_k,
        top_p=row.top_p,
        stop=[] if row.ignore_eos else stop,
    )


def _to_result(row: TokenRequest, sequence: SampledSequence, model: str, seconds: float) -> TokenResult:
    return TokenResult(
        list(sequence.tokens),
        list(sequence.logprobs or []),
        sequence.stop_reason,
        Usage(len(row.tokens), 0, len(sequence.tokens)),
        model,
        seconds,
    )


if __name__ == "__main__":
    run_main(main)
