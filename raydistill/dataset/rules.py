"""From the quality tables to rules, and from an answer to the first of them that it breaks.

The order is fixed: too_long, failed, truncated, empty, short_answer, long_answer, refused, forbidden, unmatched,
unparsable, invalid; then what a judge said (unjudged, low_score) and what others answered (duplicate).
"""

from dataclasses import dataclass
from typing import NamedTuple

from raydistill.core.answers import TOO_LONG
from raydistill.core.records import Answer, canonical_json
from raydistill.dataset import json_answers
from raydistill.dataset.quality import JudgeConfig, QualityConfig, load_schema
from raydistill.dataset.timed import search

REFUSAL_CHARS = 200  # a refusal begins the answer; further on the words may be about something else


class Facts(NamedTuple):
    """What the rules look at in an answer."""

    finish_reason: str
    error: str | None
    completion_tokens: int
    num_tokens: int
    text: str


class Fault(NamedTuple):
    """Why an answer is no example."""

    reason: str  # one of DROP_REASONS
    detail: str


@dataclass(frozen=True)
class Rules:
    """What an answer must be; plain data that can be sent to a worker. Without values it asks for the least.

    Attributes:
        refusals: expressions, near the start of an answer; () where refusals are kept.
        json_schema: as canonical JSON.
        near_copies: similarity from which answers are copies of one another; needs all answers, see `similar`.
        threshold: the lowest score that is kept; None where nothing is judged.
    """

    min_tokens: int = 0
    max_tokens: int | None = None
    min_chars: int = 0
    refusals: tuple[str, ...] = ()
    must_not_match: tuple[str, ...] = ()
    must_match: tuple[str, ...] = ()
    json_schema: str | None = None
    near_copies: float | None = None
    threshold: float | None = None

    @property
    def read_text(self) -> bool:
        """Whether a rule looks into the text of an answer."""
        return bool(self.refusals or self.must_not_match or self.must_match or self.json_schema is not None)


def compile_rules(quality: QualityConfig, judge: JudgeConfig | None = None) -> Rules:
    """Return the rules of the tables.

    Raises:
        ConfigError: the file of the JSON schema is not there, or no schema.
    """
    schema = load_schema(quality)
    return Rules(
        min_tokens=quality.min_tokens,
        max_tokens=quality.max_tokens,
        min_chars=quality.min_chars,
        refusals=tuple(quality.refusal_patterns) if quality.drop_refusals else (),
        must_not_match=tuple(quality.must_not_match),
        must_match=tuple(quality.must_match),
        json_schema=None if schema is None else canonical_json(schema),
        near_copies=quality.near_duplicate_answers,
        threshold=judge.threshold if judge is not None and judge.rubric is not None else None,
    )


def read_facts(answer: Answer) -> Facts:
    """Return what the rules look at in an answer."""
    return Facts(answer.finish_reason, answer.error, answer.usage.completion_tokens, len(answer.tokens), answer.text)


def find_fault(answer: Facts, rules: Rules) -> Fault | None:
    """Return the first rule that an answer breaks by itself, None where it breaks none.

    Raises:
        DatasetError: a search takes too long; see `timed`.
    """
    return _find_bad_end(answer) or _find_bad_length(answer, rules) or find_text_fault(answer.text, rules)


def _find_bad_end(answer: Facts) -> Fault | None:
    if answer.finish_reason == TOO_LONG:
        return Fault(TOO_LONG, answer.error or "")
    if answer.error is not None:
        return Fault("failed", answer.error)
    if answer.finish_reason == "length":
        return Fault("truncated", f"no end after {answer.completion_tokens} tokens")
    if answer.finish_reason != "stop":
        return Fault("failed", f"finish reason {answer.finish_reason!r}")
    if not answer.text.strip():
        return Fault("empty", "")
    return None


def _find_bad_length(answer: Facts, rules: Rules) -> Fault | None:
    num_tokens, num_chars = answer.num_tokens, len(answer.text.strip())
    if num_tokens < rules.min_tokens:
        return Fault("short_answer", f"{num_tokens} tokens, min_tokens={rules.min_tokens}")
    if num_chars < rules.min_chars:
        return Fault("short_answer", f"{num_chars} characters, min_chars={rules.min_chars}")
    if rules.max_tokens is not None and num_tokens > rules.max_tokens:
        return Fault("long_answer", f"{num_tokens} tokens, max_tokens={rules.max_tokens}")
    return None


def find_text_fault(text: str, rules: Rules) -> Fault | None:
    """Return the first rule about its text that an answer breaks, None where it breaks none.

    Raises:
        DatasetError: a search takes too long; see `timed`.
    """
    start = text.lstrip()[:REFUSAL_CHARS].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") if rules.refusals else ""
    for pattern in rules.refusals:
        if found := search(pattern, start, "refusal_patterns", ignore_case=True):
            return Fault("refused", found[0])
    for pattern in rules.must_not_match:
        if found := search(pattern, text, "must_not_match"):
            return Fault("forbidden", f"{pattern!r} found: {found[0]!r}")
    for pattern in rules.must_match:
        if not search(pattern, text, "must_match"):
            return Fault("unmatched", f"{pattern!r} not found")
    return None if rules.json_schema is None else _find_bad_json(text, rules.json_schema)


def _find_bad_json(text: str, schema: str) -> Fault | None:
    try:
        value = json_answers.parse(text)
    except (ValueError, RecursionError) as error:
        return Fault("unparsable", f"not JSON: {error}")
    violation = json_answers.find_violation(value, schema)
    return None if violation is None else Fault("invalid", violation)
