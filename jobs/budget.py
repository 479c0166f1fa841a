"""What a dataset will cost in tokens, before it is asked: from a sample of its rows, rendered; and whether it may."""

from dataclasses import dataclass

from jobs.data_config import CreateDataConfig
from jobs.data_plan import Plan
from raydistill.core.errors import BudgetError
from raydistill.core.records import Manifest
from raydistill.teacher.rows import render_messages


@dataclass(frozen=True)
class Estimate:
    """Tokens of the rows that are to be asked.

    Attributes:
        num_rows: (query, sample)s.
        prompt: all prompt tokens.
        cached: those of them that every row begins with: with a prefix cache they are computed once.
        completion: at most.
    """

    num_rows: int
    prompt: int
    cached: int
    completion: int

    def describe(self, config: CreateDataConfig) -> str:
        """Return the plan in one line, in money too where there are prices."""
        text = (
            f"to ask: {self.num_rows} rows, about {self.prompt:,} prompt tokens ({self.cached:,} of them the same in "
            f"every row), at most {self.completion:,} completion tokens"
        )
        if config.prices is None:
            return text
        tokens = {"prompt": self.prompt, "cached": self.cached}
        least, most = (config.cost({**tokens, "completion": number}) for number in (0, self.completion))
        limit = f", max_cost is {config.max_cost:g}" if config.max_cost is not None else ""
        return f"{text}; from {least:.4g} for the prompts alone to {most:.4g}{limit}"


def estimate_tokens(plan: Plan, config: CreateDataConfig, num_rows: int) -> Estimate:
    """Return what num_rows more rows will take, going by the plan's sample of queries."""
    rendered = [render_messages(query.messages, plan.prompt, plan.renderer) for query in plan.index.sample]
    shared = _shared_prefix(rendered) if len(rendered) > 1 else 0
    mean = sum(map(len, rendered)) / len(rendered)
    return Estimate(
        num_rows=num_rows,
        prompt=round(mean * num_rows),
        cached=shared * max(0, num_rows - 1),
        completion=config.max_tokens * num_rows,
    )


def find_overrun(folder: str, manifest: Manifest, config: CreateDataConfig) -> BudgetError | None:
    """Return the error that says that a dataset has cost max_cost; None where more may be asked."""
    cost = config.cost(manifest.tokens)
    if config.max_cost is None or cost < config.max_cost:
        return None
    return BudgetError(
        f"{folder}: its answers cost {cost:.4g} so far, and max_cost is {config.max_cost:g}. They are kept; raise "
        "max_cost and run the same command again to go on."
    )


def _shared_prefix(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with."""
    first, last = min(rows), max(rows)
    return next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
