"""What the teacher answers on the held-out queries: greedy once, and sampled at temperature 1 for likelihood."""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import ConfigError, DatasetError, ServiceError
from raydistill.core.prompts import Prompt, teacher_messages
from raydistill.core.records import Query, TokenRequest, TokenResult, digest, to_json
from raydistill.evaluation.config import EvaluateConfig
from raydistill.renderers import Renderer

Ask = Callable[[list[TokenRequest]], list[TokenResult]]

MAX_SAMPLES_PER_QUERY = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """One answer on one held-out query.

    Attributes:
        query: the query's index in the reference.
        text: without the stop token.
        tokens: the stop token included.
        finished: whether it ended by itself.
    """

    query: int
    text: str
    tokens: list[int]
    finished: bool


@dataclass(frozen=True)
class Reference:
    """The held-out queries and the teacher's answers on them, P in front."""

    queries: list[Query]
    greedy: list[Reply]  # one a query, in order
    sampled: list[Reply]  # at temperature 1, one or more a query
    teacher: dict[str, str]  # model, revision, tokenizer_digest, template_digest
    prompt_digest: str
    asked: dict[str, Any]  # of `describe_asking`: what these answers were asked with

    @property
    def num_sampled_tokens(self) -> int:
        """The number of teacher tokens on which likelihood is measured."""
        return sum(len(reply.tokens) for reply in self.sampled)


def describe_asking(
    config: EvaluateConfig, queries: Sequence[Query], prompt: Prompt, teacher: dict[str, str]
) -> dict[str, Any]:
    """Return what decides a reference, by the names that users know; arguments as for `collect_reference`."""
    return {
        **{f"evaluate.{key}": getattr(config, key) for key in ("num_queries", "min_tokens", "max_tokens", "seed")},
        "task.queries": digest(sorted(query.id for query in queries)),
        "task.prompt": prompt.digest,
        "task.teacher_model": digest({key: value for key, value in teacher.items() if key != "model"}),
    }


def collect_reference(
    config: EvaluateConfig,
    ask_teacher: Ask,
    queries: Sequence[Query],
    prompt: Prompt,
    renderer: Renderer,
    teacher: dict[str, str],
) -> Reference:
    """Ask the teacher about held-out queries while it is up.

    Args:
        config: num_queries, min_tokens, max_tokens and seed.
        ask_teacher: asks the teacher's engine; P is in the rows.
        queries: the held-out ones; the first num_queries by hash are taken, more where min_tokens asks for them.
        prompt: P.
        renderer: of the teacher's model.
        teacher: model, revision, tokenizer_digest and template_digest, as a Manifest has them.

    Raises:
        ConfigError: fewer held-out queries than num_queries.
        ServiceError: the teacher fails, or its answers are too short to reach min_tokens.
    """
    if len(queries) < config.num_queries:
        raise ConfigError(
            f"evaluate.num_queries is {config.num_queries}, but only {len(queries)} queries are held out. "
            f"Add queries to the task's file or ask for fewer."
        )
    ordered = in_asking_order(queries)
    prompts = [
        renderer.build_generation_prompt(teacher_messages(prompt, query.messages)).to_ints() for query in ordered
    ]
    chosen, extra = list(range(config.num_queries)), list(range(config.num_queries, len(ordered)))
    sampled = _sample(config, ask_teacher, prompts, ordered, renderer, [(index, 0) for index in chosen])
    turn = 0
    while (short := config.min_tokens - sum(len(reply.tokens) for reply in sampled)) > 0:
        mean = max(1.0, sum(len(reply.tokens) for reply in sampled) / len(sampled))
        wanted = int(short / mean) + 1
        more = [(index, 0) for index in extra[:wanted]]
        chosen, extra = chosen + extra[:wanted], extra[wanted:]
        if not more:
            turn += 1
            more = [(index, turn) for index in chosen[:wanted]]
        if turn >= MAX_SAMPLES_PER_QUERY:
            raise ServiceError(
                f"the teacher's answers are too short: {len(sampled)} of them have {config.min_tokens - short} tokens, "
                f"evaluate.min_tokens is {config.min_tokens}. Ask for fewer, or hold out more queries."
            )
        sampled += _sample(config, ask_teacher, prompts, ordered, renderer, more)
    rows = [_row(config, renderer, prompts[index], temperature=0.0) for index in chosen]
    greedy = make_replies(ask_all(ask_teacher, rows, "the teacher"), renderer, chosen)
    taken = [ordered[index] for index in chosen]
    asked = describe_asking(config, queries, prompt, teacher)
    return Reference(taken, greedy, sampled, dict(teacher), prompt.digest, asked)


def in_asking_order(queries: Sequence[Query]) -> list[Query]:
    """Return held-out queries in the order in which they are taken: the first num_queries always are."""
    return sorted(queries, key=lambda query: digest(["held out", query.id]))


def _sample(
    config: EvaluateConfig,
    ask_teacher: Ask,
    prompts: list[list[int]],
    queries: list[Query],
    renderer: Renderer,
    wanted: list[tuple[int, int]],
) -> list[Reply]:
    """Ask for (query, sample index) pairs at temperature 1, each with its own seed."""
    rows = [
        dataclasses.replace(
            _row(config, renderer, prompts[index], temperature=1.0),
            seed=int(digest([config.seed, queries[index].id, sample])[:7], 16),
        )
        for index, sample in wanted
    ]
    return make_replies(ask_all(ask_teacher, rows, "the teacher"), renderer, [index for index, _ in wanted])


def _row(config: EvaluateConfig, renderer: Renderer, tokens: list[int], temperature: float) -> TokenRequest:
    return TokenRequest(
        tokens,
        max_tokens=config.max_tokens,
        temperature=temperature,
        stop_token_ids=renderer.get_stop_sequences(),
    )


def ask_all(ask: Ask, rows: list[TokenRequest], whom: str) -> list[TokenResult]:
    """Return one result a row, failed rows asked once more.

    Raises:
        ServiceError: a row failed twice, or results are missing.
    """
    results = ask(rows)
    if len(results) != len(rows):
        raise ServiceError(f"{whom} was asked {len(rows)} rows and gave {len(results)} results.")
    failed = [index for index, result in enumerate(results) if result.error is not None]
    if failed:
        logger.warning("%s failed on %d of %d rows; asking them again", whom, len(failed), len(rows))
        for index, result in zip(failed, ask([rows[index] for index in failed]), strict=True):
            if result.error is not None:
                raise ServiceError(f"{whom} failed twice on the same row: {result.error}")
            results[index] = result
    return results


def make_replies(results: Sequence[TokenResult], renderer: Renderer, queries: Sequence[int]) -> list[Reply]:
    """Return results as replies on the queries of these indices."""
    replies = []
    for query, result in zip(queries, results, strict=True):
        message, ended = renderer.parse_response(result.tokens)
        replies.append(Reply(query, message["content"], list(result.tokens), ended and result.finish_reason == "stop"))
    return replies


def write_reference(reference: Reference, uri: str) -> None:
    """Write a reference as one JSON object, so that `jobs.evaluate` needs no teacher."""
    storage.write_bytes(uri, to_json(reference).encode())


def read_reference(uri: str) -> Reference:
    """Return the reference that `write_reference` wrote.

    Raises:
        NotFoundError: there is none.
        DatasetError: it is not one.
    """
    text = storage.read_bytes(uri)
    try:
        data: dict[str, Any] = json.loads(text)
        data["queries"] = [Query(**query) for query in data["queries"]]
        for key in ("greedy", "sampled"):
            data[key] = [Reply(**reply) for reply in data[key]]
        return Reference(**data)
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{uri} is no reference ({error}). Remove it and let distill collect it again.") from error
