"""What a dataset takes in tokens, before it is asked: whether they fit, what they cost, and whether they may."""

import contextlib
import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jobs.data_config import CreateDataConfig
from jobs.data_plan import Plan
from raydistill.core.errors import BudgetError, ConfigError
from raydistill.core.records import Answer, Manifest, Message, Query, Usage
from raydistill.dataset.judge import Rubric, judge_messages
from raydistill.engine.config import EngineConfig
from raydistill.queries.plan import SURPLUS, plan_round
from raydistill.teacher.rows import render_messages, split_turns

STAND_IN = "Yes."  # for an answer that nobody knows yet
SAMPLE = 1000  # of the queries that are given: what the teacher is shown of them, when it is to write more
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """Tokens of the rows that are to be asked.

    Attributes:
        num_rows: (query, sample)s.
        prompt: all prompt tokens, but for the teacher's own answers to earlier turns.
        cached: those of them that every request begins with: with a prefix cache they are computed once.
        completion: at most.
        repeated: further prompt tokens, at most: in a conversation an answer is in the prompts of all later turns.
        judge: the same of the judge's requests, at most, where answers are judged: `repeated` are the answers there.
    """

    num_rows: int
    prompt: int
    cached: int
    completion: int
    repeated: int
    judge: "Estimate | None" = None

    def describe(self, config: CreateDataConfig) -> str:
        """Return the plan in one line, in money too where there are prices."""
        text = (
            f"to ask: {self.num_rows} rows, about {self.prompt:,} prompt tokens ({self.cached:,} of them the same in "
            f"every row), at most {self.completion:,} completion tokens"
        )
        if self.repeated:
            text += f", which later turns read again as at most {self.repeated:,} prompt tokens"
        if self.judge is not None:
            prompt = self.judge.prompt + self.judge.repeated
            text += (
                f"; the judge at most {prompt:,} prompt tokens ({self.judge.cached:,} of them the same) and "
                f"{self.judge.completion:,} completion tokens"
            )
        if config.prices is None:
            return text
        least = config.cost({"prompt": self.prompt, "cached": self.cached, "completion": 0})
        limit = f", max_cost is {config.max_cost:g}" if config.max_cost is not None else ""
        return f"{text}; from {least:.4g} for the prompts alone to {self.cost(config):.4g}{limit}"

    def cost(self, config: CreateDataConfig) -> float:
        """Return the price of all of it, at most."""
        tokens = {"prompt": self.prompt + self.repeated, "cached": self.cached, "completion": self.completion}
        return config.cost(tokens) + (self.judge.cost(config) if self.judge is not None else 0.0)


def estimate_tokens(plan: Plan, config: CreateDataConfig, num_rows: int) -> Estimate:
    """Return what num_rows more rows will take, going by the plan's sample of queries.

    Where there are none, only a judge is left, for all rows at most.
    """
    all_turns = config.answer_turns == "all"
    rows = [_fill_in(split_turns(query.messages, all_turns)) for query in plan.index.sample]
    found = _estimate(rows, num_rows, config.max_tokens, lambda said: render_messages(said, plan.prompt, plan.renderer))
    if plan.rubric is None:
        return found
    return dataclasses.replace(found, judge=_estimate_judge(plan, plan.rubric, config, rows, num_rows))


def _estimate(
    rows: list[list[list[Message]]], num_rows: int, max_tokens: int, render: Callable[[list[Message]], list[int]]
) -> Estimate:
    """Return what so many rows like these take, where each request is made of what is said before it."""
    rendered = [_render_all(row, render) for row in rows]
    prompts = [prompt for row in rendered for prompt in row]
    shared = _shared_prefix(prompts) if len(prompts) > 1 else 0
    share = num_rows / len(rows)
    num_requests = round(share * len(prompts))
    num_repeated = sum(len(row) * (len(row) - 1) // 2 for row in rendered)  # the n-th turn reads n - 1 answers again
    return Estimate(
        num_rows=num_rows,
        prompt=round(share * sum(map(len, prompts))),
        cached=shared * max(0, num_requests - 1),
        completion=max_tokens * num_requests,
        repeated=round(share * num_repeated) * max_tokens,
    )


def _estimate_judge(
    plan: Plan, rubric: Rubric, config: CreateDataConfig, rows: list[list[list[Message]]], num_rows: int
) -> Estimate:
    """Return what the judge takes where every answer is kept; it reads the one that it grades, and those before."""

    def render(said: list[Message]) -> list[int]:
        answer = Answer("", "", 0, 0, said, STAND_IN, [], "stop", Usage(0, 0, 0), 0.0)
        return plan.renderer.build_generation_prompt(judge_messages(plan.prompt, answer, rubric)).to_ints()

    found = _estimate(rows, num_rows or plan.choice.num_rows, config.max_tokens, render)
    return dataclasses.replace(
        found,
        repeated=found.repeated + found.completion,
        completion=found.completion // config.max_tokens * rubric.max_tokens,
    )


def describe_writing(plan: Plan, config: CreateDataConfig, given: Iterable[Query]) -> str:
    """Return in one line what the queries take that the teacher is to write, going by the first round's requests."""
    shown = list(itertools.islice(given, SAMPLE))
    requests = plan_round(plan.prompt, shown, plan.num_short, config.seed, 0, config.expand)
    num_requests = math.ceil(SURPLUS * plan.num_short / config.expand.queries_per_request)
    rows = [[request.messages] for request in requests[:SAMPLE]]
    render = plan.renderer.build_generation_prompt
    found = _estimate(rows, num_requests, config.expand.max_tokens, lambda messages: render(messages).to_ints())
    text = (
        f"to write: {plan.num_short} queries, about {found.prompt:,} prompt tokens in {num_requests} requests, about "
        f"{found.completion:,} completion tokens at most; more where what comes is not new"
    )
    return text if config.prices is None else f"{text}; up to {found.cost(config):.4g}"


def _fill_in(turns: list[list[Message]]) -> list[list[Message]]:
    """Return what is said before each answer of a row, with a stand-in for each earlier one."""
    said: list[Message] = []
    found = []
    for turn in turns:
        said = [*said, *turn]
        found.append(said)
        said = [*said, {"role": "assistant", "content": STAND_IN}]
    return found


def _render_all(row: list[list[Message]], render: Callable[[list[Message]], list[int]]) -> list[list[int]]:
    prompts = []
    for said in row:
        with contextlib.suppress(ConfigError):  # a template may refuse roles in this order: that fails a row, no plan
            prompts.append(render(said))
    return prompts


def check_length(plan: Plan, config: CreateDataConfig, engine: EngineConfig) -> None:
    """Refuse a P that leaves the teacher no room to answer even the shortest query."""
    shortest = plan.index.shortest.messages if plan.index.shortest else [{"role": "user", "content": "?"}]
    num_tokens = len(render_messages(shortest, plan.prompt, plan.renderer))
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


def find_overrun(folder: str, manifest: Manifest, config: CreateDataConfig) -> BudgetError | None:
    """Return the error that says that a dataset has cost max_cost; None where more may be asked."""
    cost = manifest.cost
    if cost is None or config.max_cost is None or cost < config.max_cost:
        return None
    return BudgetError(
        f"{folder}: all that was asked cost {cost:.4g} so far, and max_cost is {config.max_cost:g}. What came is kept; "
        "raise max_cost and run the same command again to go on."
    )


def _shared_prefix(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with."""
    first, last = min(rows), max(rows)
    return next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
