"""The `[create_data]` table: what users say of the data that is to be created."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from raydistill.core.config import Section
from raydistill.dataset.quality import JudgeConfig, QualityConfig
from raydistill.dataset.spending import price_tokens
from raydistill.queries.config import ExpansionConfig


class PriceConfig(Section):
    """What tokens cost, in any currency, for a million of them."""

    input: float = Field(ge=0)
    """Prompt tokens."""
    cached_input: float | None = Field(default=None, ge=0)
    """Prompt tokens that come from the prefix cache; as `input` where nothing is said."""
    output: float = Field(ge=0)
    """Completion tokens."""

    def cost(self, tokens: dict[str, int]) -> float:
        """Return the price of prompt, cached (which are among the prompt's) and completion tokens."""
        return price_tokens(tokens, self.model_dump())


class CreateDataConfig(Section):
    """The `[create_data]` table."""

    output_file: str
    """The dataset's folder (local or s3://); where it ends in .jsonl, that file, with the ledger in FILE.d/."""
    teacher_model: str
    """A folder, a hub id, s3:// or demo://."""
    teacher_application: str | None = None
    """The name of a teacher that runs on the cluster already (cluster/serve.teacher.yaml, say), with this model; it is
    left running. By default the job starts one of its own, by the table `teacher`, and stops it."""
    num_examples: int = Field(ge=1)
    """(query, sample) pairs to ask."""
    queries: str | None = None
    """A file of JSON lines (with "text" or "messages"), Parquet, CSV or plain text, or a folder of such files. Without
    any the teacher writes them all, see `expand`."""
    near_duplicates: float | None = Field(default=None, ge=0.5, le=0.99)
    """Ask no query whose text resembles another one's so much (estimated Jaccard similarity); None looks only for equal
    texts. It costs 0.1 to 0.2 ms a query."""
    expand: ExpansionConfig = Field(default_factory=lambda: ExpansionConfig.model_validate({}))
    """Let the teacher write further queries where there are too few."""
    prompt: str
    """P: a .md, .txt or .json file."""
    num_samples: int = Field(default=1, ge=1)
    """How often a query may be asked."""
    answer_turns: Literal["last", "all"] = "last"
    """Of a query with several user turns: answer the last one, or every one, each on the teacher's earlier answers."""
    temperature: float = Field(default=0.3, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=800, ge=1)
    """Of one answer; a longer one is dropped as truncated."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end an answer, besides the end of the assistant's turn; they are no part of it."""
    top_logprobs: int | None = Field(default=None, ge=1, le=20)
    """Record this many of the most likely tokens at each position, with their log-probabilities (soft labels)."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the rows and of the sampling of each."""
    renderer: Literal["chat", "raw"] = "chat"
    """By the teacher's chat template, or, for a base model, as plain text: then P is a user template."""
    concurrency: int = Field(default=64, ge=1)
    """Rows at a replica of the teacher at a time: as many as it decodes, `max_num_seqs`, or more."""
    rows_per_call: int = Field(default=1, ge=1)
    """Rows in one call to a replica: more where it answers in milliseconds, and calls cost more than answers."""
    num_actors: int = Field(default=2, ge=1)
    """Ray Data actors that share the rows, at least; where commit_rows is small for the concurrency, there are more."""
    commit_rows: int = Field(default=64, ge=2)
    """Rows of one actor that are asked and not yet in the ledger, at most: what a kill loses."""
    max_attempts: int = Field(default=3, ge=1)
    """How often a row is asked before it is dropped as failed."""
    timeout_seconds: float = Field(default=600, gt=0)
    """Of one attempt."""
    retry_failed: bool = False
    """Ask failed rows of an earlier run again."""
    smoke_rows: int = Field(default=16, ge=0)
    """Rows that are asked before all others, to see that answers can be used; 0 for none."""
    smoke_min_kept: int = Field(default=14, ge=0)
    """So many of smoke_rows must be kept, else nothing more is asked."""
    max_dropped_share: float = Field(default=0.5, ge=0, le=1)
    """Where a larger share of the answers is dropped, the job fails; what was kept stays."""
    quality: QualityConfig = Field(default_factory=lambda: QualityConfig.model_validate({}))
    """What an answer must be to be kept. Other rules on the same dataset ask nothing again."""
    judge: JudgeConfig = Field(default_factory=lambda: JudgeConfig.model_validate({}))
    """Let the teacher grade its answers."""
    prices: PriceConfig | None = None
    """What tokens cost."""
    max_cost: float | None = Field(default=None, gt=0)
    """Stop asking when the dataset has cost this much, written queries and judgements included; needs `prices`."""

    def sampling(self) -> dict[str, Any]:
        """Return what decides an answer besides P, query and teacher: a part of the fingerprint."""
        names = ("temperature", "top_p", "max_tokens", "stop", "top_logprobs", "answer_turns", "seed")
        return {name: getattr(self, name) for name in names}

    def cost(self, tokens: dict[str, int]) -> float:
        """Return the price of so many tokens; 0 where there are no prices."""
        return 0.0 if self.prices is None else self.prices.cost(tokens)

    @model_validator(mode="after")
    def _fits_together(self) -> "CreateDataConfig":
        if self.max_cost is not None and self.prices is None:
            raise ValueError("max_cost needs prices: write a table [create_data.prices] with input and output")
        if self.queries is None and not self.expand.enabled:
            raise ValueError("queries is missing; without any, set expand.enabled=true, and the teacher writes them")
        if self.renderer == "raw" and self.expand.enabled:
            raise ValueError("expand asks the teacher in several messages, and renderer=raw shows it one: take chat")
        threshold = self.expand.near_threshold
        if self.expand.enabled and self.near_duplicates is not None and self.near_duplicates < threshold:
            raise ValueError(
                f"near_duplicates ({self.near_duplicates:g}) is below expand.near_threshold ({threshold:g}): it would "
                "leave out what the teacher has just written; make it equal or larger"
            )
        if self.smoke_min_kept > self.smoke_rows > 0:
            raise ValueError(f"smoke_min_kept ({self.smoke_min_kept}) is above smoke_rows ({self.smoke_rows})")
        return self

    def count_actors(self, num_rows: int, num_replicas: int = 1) -> int:
        """Return how many actors ask, so that the rows which each may have uncommitted keep its share at the teacher.

        Half of them are at the teacher while the other half waits for its commit.
        """
        in_flight = min(self.concurrency * num_replicas, num_rows)
        wanted = max(self.num_actors, math.ceil(2 * in_flight / self.commit_rows))
        return max(1, min(wanted, math.ceil(num_rows / self.commit_rows), in_flight))
