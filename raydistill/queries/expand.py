"""Expansion: rounds in which the teacher writes further queries, until there are enough or nothing new comes."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from raydistill.core.errors import QualityError
from raydistill.core.prompts import Prompt
from raydistill.core.records import Query, canonical_json
from raydistill.queries.config import ExpansionConfig
from raydistill.queries.near import REASON as NEAR
from raydistill.queries.near import NearIndex
from raydistill.queries.parse import EXPANDED, parse_expansion
from raydistill.queries.plan import ExpansionRequest, plan_round
from raydistill.queries.split import normalise


@dataclass(frozen=True)
class Reply:
    """What the teacher wrote to one request; "" where it failed."""

    text: str
    truncated: bool = False  # it ran into max_tokens
    error: str | None = None  # why it failed


Ask = Callable[[list[ExpansionRequest]], Sequence[Reply]]  # a reply for each request, in their order


@dataclass(frozen=True)
class Round:
    """What one round brought.

    Attributes:
        index: of the round, from 0.
        kept: the new queries.
        rejected: reason -> how many queries were thrown away; "unparsable" counts answers without any query, "failed"
            requests without an answer.
        error: why the last of those failed.
    """

    index: int
    kept: list[Query]
    rejected: dict[str, int]
    error: str | None = None


class KnownQueries:
    """Everything that new queries are compared with. It holds some 5 KB of memory a query."""

    def __init__(self, queries: Iterable[Query], near_threshold: float) -> None:
        """Begin with these queries, whether or not they resemble one another."""
        self._texts: set[str] = set()
        self._near = NearIndex(near_threshold)
        for query in queries:
            self._texts.add(normalise(query))
            self._near.add(query)

    def add_if_new(self, query: Query) -> str:
        """Return "" and remember a query that is new, or the reason why it is not: "duplicate" or "near_duplicate"."""
        text = normalise(query)
        if text in self._texts:
            return "duplicate"
        if self._near.find_or_add(query) is not None:
            return NEAR
        self._texts.add(text)
        return ""


def select_new(candidates: Iterable[Query], known: KnownQueries) -> tuple[list[Query], list[tuple[Query, str]]]:
    """Return the candidates that are new, which are known from then on, and the others, each with the reason."""
    kept: list[Query] = []
    rejected: list[tuple[Query, str]] = []
    for query in candidates:
        reason = known.add_if_new(query)
        if reason:
            rejected.append((query, reason))
        else:
            kept.append(query)
    return kept, rejected


@dataclass(frozen=True)
class Expansion:
    """What determines the queries that are written, besides the teacher.

    Attributes:
        prompt: P.
        given: the user's queries that may be shown to the teacher: never held-out ones.
        seed: of the plan.
        config: the `expand` table.
    """

    prompt: Prompt
    given: Sequence[Query]
    seed: int
    config: ExpansionConfig


def expand_queries(
    expansion: Expansion, written: Sequence[Query], num_wanted: int, ask: Ask, others: Iterable[Query] = ()
) -> Iterator[Round]:
    """Yield rounds of new queries until num_wanted are written, those of earlier runs included.

    The caller writes each round before it takes the next one. Given what was written, a later call goes on behind the
    last round, and asks what the first call would have asked.

    Args:
        expansion: what is to be expanded.
        written: what earlier rounds kept, in their order, as read back from where the caller wrote it.
        num_wanted: how many written queries there are to be; a round may bring more.
        ask: asks the teacher.
        others: queries that new ones must not resemble either, and that are never shown: the held-out ones.

    Raises:
        QualityError: expansion has stalled, or came to max_rounds, before there were enough.
    """
    config = expansion.config
    num_written = len(written)
    if num_written >= num_wanted:
        return
    shown = [*expansion.given, *written]
    known = KnownQueries([*shown, *others], config.near_threshold)
    idle_rounds = 0
    for index in range(_next_round(written), config.max_rounds):
        requests = plan_round(expansion.prompt, shown, num_wanted - num_written, expansion.seed, index, config)
        found = _ask_round(requests, index, ask, known, config)
        shown += found.kept
        num_written += len(found.kept)
        yield found
        if num_written >= num_wanted:
            return
        idle_rounds = 0 if found.kept else idle_rounds + 1
        if idle_rounds == config.idle_rounds:
            raise QualityError(
                f"expand: {num_wanted} more queries are needed, the teacher wrote {num_written} that are new, and the "
                f"last {idle_rounds} rounds brought none ({_describe(found)}). Give queries, lower num_examples, raise "
                "expand.temperature or expand.near_threshold, or take a larger teacher."
            )
    raise QualityError(
        f"expand: {num_wanted} more queries are needed, and the teacher wrote {num_written} that are new in the "
        f"expand.max_rounds={config.max_rounds} rounds. Give queries, lower num_examples or raise expand.max_rounds."
    )


def query_to_line(query: Query) -> str:
    """Return an expanded query as a line of JSON, which `iter_queries` reads back as the same query."""
    return canonical_json({"messages": query.messages, **{key: query.metadata[key] for key in EXPANDED}}) + "\n"


def _ask_round(
    requests: list[ExpansionRequest], index: int, ask: Ask, known: KnownQueries, config: ExpansionConfig
) -> Round:
    candidates: list[Query] = []
    rejected: Counter[str] = Counter()
    error = None
    for request, reply in zip(requests, ask(requests), strict=True):
        if reply.error is not None:
            rejected["failed"] += 1
            error = reply.error
            continue
        found = parse_expansion(request, reply.text, reply.truncated, config.max_query_chars)
        candidates += found
        rejected["unparsable"] += not found
    kept, others = select_new(candidates, known)
    rejected.update(reason for _, reason in others)
    return Round(index, kept, dict(+rejected), error)


def _next_round(written: Sequence[Query]) -> int:
    return max((int(query.metadata.get("round", -1)) for query in written), default=-1) + 1


def _describe(found: Round) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(found.rejected.items())) or "no answers"
    return counts if found.error is None else f"{counts}; the last error: {found.error}"
