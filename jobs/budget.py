"""What a dataset takes in tokens, before it is asked: whether they fit, what they cost, and whether they may."""

import contextlib
import logging
from dataclasses import dataclass

from jobs.data_config import CreateDataConfig
from jobs.data_plan import Plan
from raydistill.core.errors import BudgetError, ConfigError
from raydistill.core.records import Manifest, Message
from raydistill.engine.config import EngineConfig
from raydistill.teacher.rows import render_messages, split_turns

STAND_IN = "Yes."  # for an answer that nobody knows yet
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
    """

    num_rows: int
    prompt: int
    cached: int
    completion: int
    repeated: int

    def describe(self, config: CreateDataConfig) -> str:
        """Return the plan in one line, in money too where there are prices."""
        text = (
            f"to ask: {self.num_rows} rows, about {self.prompt:,} prompt tokens ({self.cached:,} of them the same in "
            f"every row), at most {self.completion:,} completion tokens"
        )
        if self.repeated:
            text += f", which later turns read again as at most {self.repeated:,} prompt tokens"
        if config.prices is None:
            return text
        least = config.cost({"prompt": self.prompt, "cached": self.cached, "completion": 0})
        prompt = self.prompt + self.repeated
        most = config.cost({"prompt": prompt, "cached": self.cached, "completion": self.completion})
        limit = f", max_cost is {config.max_cost:g}" if config.max_cost is not None else ""
        return f"{text}; from {least:.4g} for the prompts alone to {most:.4g}{limit}"


def estimate_tokens(plan: Plan, config: CreateDataConfig, num_rows: int) -> Estimate:
    """Return what num_rows more rows will take, going by the plan's sample of queries."""
    all_turns = config.answer_turns == "all"
    rows = [_render_turns(split_turns(query.messages, all_turns), plan) for query in plan.index.sample]
    prompts = [prompt for row in rows for prompt in row]
    shared = _shared_prefix(prompts) if len(prompts) > 1 else 0
    share = num_rows / len(rows)
    num_requests = round(share * len(prompts))
    num_repeated = sum(len(row) * (len(row) - 1) // 2 for row in rows)  # the n-th turn reads n - 1 answers again
    return Estimate(
        num_rows=num_rows,
        prompt=round(share * sum(map(len, prompts))),
        cached=shared * max(0, num_requests - 1),
        completion=config.max_tokens * num_requests,
        repeated=round(share * num_repeated) * config.max_tokens,
    )


def _render_turns(turns: list[list[Message]], plan: Plan) -> list[list[int]]:
    """Return the prompts of a row's turns as far as they are known, with a stand-in for each answer."""
    said: list[Message] = []
    prompts = []
    for turn in turns:
        said = [*said, *turn]
        with contextlib.suppress(ConfigError):  # a template may refuse roles in this order: that fails a row, no plan
            prompts.append(render_messages(said, plan.prompt, plan.renderer))
        said.append({"role": "assistant", "content": STAND_IN})
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
