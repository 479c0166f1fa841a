"""Evaluate one served version against the teacher: everything that `report.json` says."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from raydistill.core.errors import ConfigError, ServiceError
from raydistill.core.prompts import Prompt, student_messages, teacher_messages
from raydistill.core.records import TokenRequest, TokenResult, Version
from raydistill.evaluation.config import EvaluateConfig
from raydistill.evaluation.latency import measure_latency
from raydistill.evaluation.metrics import measure_agreement, valid_share
from raydistill.evaluation.reference import Ask, Reference, Reply, ask_all, make_replies
from raydistill.renderers import Renderer, get_renderer, load_tokenizer, tokenizer_digest

NUM_SHOWN = 8  # examples in the report

OnStep = Callable[[str, float], None]


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and against which model with P.

    Attributes:
        model: how rows name it, like "triage/candidate"; "" in a row is the served base model.
        version: the version that this must be.
        adapter_dir: local folder with the version's published files.
        model_dir: local folder of the student's base model.
        teacher_dir: local folder of the teacher; None where no likelihood can be measured here.
        prompt: P.
    """

    model: str
    version: Version
    adapter_dir: str
    model_dir: str
    teacher_dir: str | None
    prompt: Prompt


@dataclass(frozen=True)
class Prompts:
    """Token ids of every query, in each form in which it is asked."""

    with_p: list[list[int]]  # the student's base with P in front
    without_p: list[list[int]]
    raw: list[list[int]]  # the plain encoded query
    teacher: list[list[int]] | None  # the teacher's own, with P; None where its tokens mean nothing to the student


def evaluate(
    config: EvaluateConfig,
    subject: Subject,
    reference: Reference,
    ask: Ask,
    facts: dict[str, Any] | None = None,
    on_step: OnStep = lambda what, share: None,
) -> dict[str, Any]:
    """Return the report on a served version.

    Args:
        config: how much is asked, and the task's check.
        subject: the version, its published files and its base model.
        reference: the teacher's answers on the held-out queries.
        ask: asks the served endpoint, rows in, results in the same order out.
        facts: `counts` (asked, kept, dropped) and `seconds` per stage, as far as the caller knows them.
        on_step: called with what is being done and the share of it that is done.

    Raises:
        ConfigError: the reference, the version and P do not belong together.
        ServiceError: the endpoint fails or serves another version.
    """
    started = time.monotonic()
    _check_prompt(subject, reference)
    tokenizer = load_tokenizer(subject.model_dir)
    renderer = get_renderer(subject.version.renderer, tokenizer)
    prompts = _render(subject, reference, renderer)
    served = _ask_arms(config, subject, ask, renderer, prompts, on_step)
    replies = {name: make_replies(results, renderer, range(len(results))) for name, results in served.items()}
    kl = _measure_likelihood(config, subject, reference, prompts, served["student"], on_step)
    arms = {
        "base_with_p": ("", prompts.with_p),
        "base_without_p": ("", prompts.without_p),
        "adapter": (subject.model, prompts.without_p),
    }
    on_step("latency", 0.0)
    latency = measure_latency(config, ask, arms, lambda share: on_step("latency", share))
    with_p, without_p = _mean_length(prompts.with_p), _mean_length(prompts.without_p)
    facts = facts or {}
    return {
        "model": {
            "name": subject.version.name,
            "version": subject.version.label,
            "base_model": subject.version.base_model,
            "base_revision": subject.version.base_revision,
            "teacher": reference.teacher,
            "prompt_digest": reference.prompt_digest,
            "served_as": sorted({result.model for result in served["student"]}),
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "held_out": {"queries": len(reference.queries), "teacher_tokens": reference.num_sampled_tokens},
        "validity": {
            "teacher": valid_share(reference.greedy, config.check),
            **{name: valid_share(replies[name], config.check) for name in ("base", "student", "student_raw")},
        },
        "agreement": measure_agreement(reference.greedy, replies["student"], config.check),
        "kl": kl,
        "tokens": {"prompt_with_p": with_p, "prompt_without_p": without_p, "reduction": 1 - without_p / with_p},
        "latency": {
            **latency,
            "tokens_each": config.latency_tokens,
            "at_once": config.concurrency,
        },
        "counts": facts.get("counts", {}),
        "seconds": {**facts.get("seconds", {}), "evaluate": round(time.monotonic() - started, 2)},
        "examples": _pick_examples(reference, replies),
    }


def _check_prompt(subject: Subject, reference: Reference) -> None:
    digests = {"the task's prompt": subject.prompt.digest, "the reference": reference.prompt_digest}
    digests["the version"] = subject.version.prompt_digest or subject.prompt.digest  # "" where only a .jsonl was known
    if len(set(digests.values())) > 1:
        listing = ", ".join(f"{name} {value}" for name, value in digests.items())
        raise ConfigError(f"{subject.model}: these are about different prompts: {listing}. Distil again with this P.")


def _render(subject: Subject, reference: Reference, renderer: Renderer) -> Prompts:
    queries = [query.messages for query in reference.queries]
    tokenizer = load_tokenizer(subject.model_dir)
    raw = get_renderer("raw", tokenizer)
    teacher = None
    if subject.teacher_dir is not None and reference.teacher["tokenizer_digest"] == tokenizer_digest(tokenizer):
        theirs = get_renderer("chat", load_tokenizer(subject.teacher_dir))
        teacher = _build(theirs, [teacher_messages(subject.prompt, query) for query in queries])
    return Prompts(
        with_p=_build(renderer, [teacher_messages(subject.prompt, query) for query in queries]),
        without_p=_build(renderer, [student_messages(query) for query in queries]),
        raw=_build(raw, [student_messages(query) for query in queries]),
        teacher=teacher,
    )


def _build(renderer: Renderer, conversations: list[list[dict[str, str]]]) -> list[list[int]]:
    return [renderer.build_generation_prompt(messages).to_ints() for messages in conversations]


def _ask_arms(
    config: EvaluateConfig, subject: Subject, ask: Ask, renderer: Renderer, prompts: Prompts, on_step: OnStep
) -> dict[str, list[TokenResult]]:
    """Ask every query greedily of the student (rendered and raw) and of the bare base."""
    arms = {
        "student": (subject.model, prompts.without_p),
        "student_raw": (subject.model, prompts.raw),
        "base": ("", prompts.without_p),
    }
    served: dict[str, list[TokenResult]] = {}
    for name, (model, tokens) in arms.items():
        on_step("answers", len(served) / len(arms))
        rows = [
            TokenRequest(
                row,
                model=model,
                max_tokens=config.max_tokens,
                temperature=0.0,
                stop_token_ids=renderer.get_stop_sequences(),
            )
            for row in tokens
        ]
        served[name] = ask_all(ask, rows, f"the {name.partition('_')[0]}")
        if model:
            _check_served(subject, served[name])
    on_step("answers", 1.0)
    return served


def _check_served(subject: Subject, results: list[TokenResult]) -> None:
    """Refuse answers of another version: the engine says with each which it was."""
    wanted = f"{subject.version.name}/{subject.version.label}"
    others = sorted({result.model for result in results if result.model.partition("@")[0] != wanted})
    if others:
        raise ServiceError(
            f"{subject.model} was answered by {', '.join(others)}, but {wanted} is to be evaluated. Wait until /status "
            f"shows it, or evaluate that version."
        )


def _measure_likelihood(
    config: EvaluateConfig,
    subject: Subject,
    reference: Reference,
    prompts: Prompts,
    served: list[TokenResult],
    on_step: OnStep,
) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(
        ("base", "student", "gap_closed", "gap_closed_interval", "tokens", "served_difference")
    )
    if not config.kl:
        return empty
    from raydistill.evaluation.likelihood import load_arms, measure_kl, measure_served_difference  # loads torch

    on_step("likelihood", 0.0)
    teacher_dir = subject.teacher_dir if prompts.teacher is not None else None
    model, teacher_model = load_arms(subject.model_dir, subject.adapter_dir, teacher_dir or subject.model_dir)
    difference = measure_served_difference(model, prompts.without_p, served)
    on_step("likelihood", 0.2)
    if prompts.teacher is None:
        return {**empty, "served_difference": difference}
    kl = measure_kl(
        model,
        teacher_model,
        reference,
        (prompts.teacher, prompts.without_p),
        lambda share: on_step("likelihood", 0.2 + 0.8 * share),
        config.seed,
    )
    return {**kl, "served_difference": difference}


def _mean_length(rows: list[list[int]]) -> float:
    return sum(map(len, rows)) / len(rows)


def _pick_examples(reference: Reference, replies: dict[str, list[Reply]]) -> list[dict[str, str]]:
    return [
        {
            "query": query.messages[-1]["content"],
            "teacher": reference.greedy[index].text,
            **{name: replies[name][index].text for name in ("student", "student_raw", "base")},
        }
        for index, query in enumerate(reference.queries[:NUM_SHOWN])
    ]
