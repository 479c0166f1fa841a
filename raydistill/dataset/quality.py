"""The tables `[create_data.quality]` and `[create_data.judge]`: which of the teacher's answers become examples."""

import json
from pathlib import Path
from typing import Any, Self

import regex
from pydantic import Field, field_validator, model_validator

from raydistill.core.config import Section
from raydistill.core.errors import ConfigError
from raydistill.dataset.json_answers import check_schema

# Looked for in any case, near the start of an answer, with straight apostrophes.
REFUSALS = (
    r"\bi(?:'m| am)(?: (?:really|very|so|truly))? (?:sorry|afraid)\b[^.!?\n]{0,60}"
    r"\b(?:can(?:not|'t| not)|unable|not able)",
    r"\bi(?: can(?:not|'t| not)|'m (?:unable|not able) to| am (?:unable|not able) to| won't| will not)"
    r"(?: be able to)? (?:help|assist|answer|comply|fulfil|provide|discuss|support|engage|do (?:that|this))",
    r"\bas an? (?:ai|(?:large )?language model)\b(?:[ -](?:language )?(?:model|assistant))?,? "
    r"i (?:can(?:not|'t| not)|am (?:unable|not)|do(?:n't| not)|must (?:decline|refuse)|won't|will not)",
    r"\bagainst my (?:guidelines|programming|polic(?:y|ies))\b",
    r"\bich kann\b[^.!?\n]{0,40}\bnicht (?:weiter)?(?:helfen|beantworten|unterstützen|nachkommen)",
    r"\bkann ich\b[^.!?\n]{0,40}\bnicht (?:weiter)?(?:helfen|beantworten|unterstützen|nachkommen)",
    r"\bje ne (?:peux|suis) pas\b[^.!?\n]{0,30}\b(?:aider|répondre|fournir|assister)",
    r"\bno puedo (?:ayudar|asistir|responder|proporcionar|cumplir)",
    r"\bnão (?:posso|consigo) (?:ajudar|auxiliar|responder|fornecer)",
    r"\bnon posso (?:aiutar|assister|risponder|fornir)",
    r"(?:抱歉|对不起|對不起|很遗憾).{0,20}(?:无法|無法|不能)",
    r"(?:申し訳|すみません|恐れ入り).{0,30}(?:できません|できかね|いたしかね)",
    r"(?:죄송|미안).{0,30}(?:수 없|어렵)",
)


class QualityConfig(Section):
    """The `[create_data.quality]` table: what an answer must satisfy besides ending by itself and not being empty.

    The rules are applied to what is in the ledger, so other rules on the same dataset ask nothing again. Expressions
    are those of Python's `re`, found anywhere in an answer.
    """

    drop_refusals: bool = False
    """Drop answers like "I'm sorry, but I can't help with that".

    Off by default: where P tells the teacher what to refuse (safety, triage, legal advice), a refusal is the right
    answer, and a student that never sees one learns never to refuse. Turn it on where P leaves nothing to refuse."""
    refusal_patterns: list[str] = Field(default_factory=lambda: list(REFUSALS))
    """What a refusal looks like: expressions that are looked for in an answer's first 200 characters, in any case.
    The default knows English, German, French, Spanish, Portuguese, Italian, Chinese, Japanese and Korean."""
    must_match: list[str] = Field(default_factory=list)
    """Expressions, each of which is found in every answer that is kept."""
    must_not_match: list[str] = Field(default_factory=list)
    """Expressions, none of which is found in any answer that is kept."""
    json_schema: str | dict[str, Any] | None = None
    """A JSON schema (a table, its JSON text, or the path of a .json file): an answer is JSON and nothing else, and
    valid by it. An empty table asks for any JSON. A key that stands twice, NaN and Infinity are no JSON; `format` is
    not checked."""
    min_tokens: int = Field(default=0, ge=0)
    """Of an answer at least, the token that ends it counted."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Of an answer at most. An answer that runs into create_data.max_tokens is dropped as truncated in any case."""
    min_chars: int = Field(default=0, ge=0)
    """Of an answer at least, without the white space around it."""
    near_duplicate_answers: float | None = Field(default=None, ge=0.5, le=1)
    """Of answers that share this much of their text (Jaccard similarity of runs of 5 characters, as estimated by
    MinHash; 1 for the same text but for case and white space) one is kept.

    Off by default: where the right answers are few or short, as in classification or extraction, equal answers to
    different queries are what the student has to learn."""

    @field_validator("refusal_patterns", "must_match", "must_not_match")
    @classmethod
    def _patterns_compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        return patterns

    @field_validator("json_schema")
    @classmethod
    def _schema_is_one(cls, schema: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if isinstance(schema, str) and schema.lstrip().startswith("{"):  # as one writes it on a command line
            try:
                schema = json.loads(schema)
            except json.JSONDecodeError as error:
                raise ValueError(f"this is no JSON ({error})") from error
        if isinstance(schema, dict):
            check_schema(schema)
        return schema

    @model_validator(mode="after")
    def _some_length_is_left(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens={self.max_tokens} is less than min_tokens={self.min_tokens}")
        return self


class JudgeConfig(Section):
    """The `[create_data.judge]` table: the teacher grades each answer that the rules keep, by a rubric.

    Grades are a ledger of their own: another threshold asks nothing, another rubric or scale asks again.
    """

    rubric: str | None = None
    """What makes an answer good: a text, or the path of a .md or .txt file. Without one nothing is judged."""
    threshold: float | None = None
    """Answers with a lower score are dropped."""
    lowest_score: float = 1
    """Of the scale."""
    highest_score: float = 5
    """Of the scale."""
    max_tokens: int = Field(default=256, ge=1)
    """Of a judgement; where it is cut before the score, the answer is dropped as unjudged."""
    temperature: float = Field(default=0, ge=0, le=2)
    """Of a judgement."""
    sees_prompt: bool = True
    """Whether the judge is shown P: needed where the rubric says "as instructed"; without P a judgement is cheaper."""

    @model_validator(mode="after")
    def _threshold_is_on_the_scale(self) -> Self:
        if self.highest_score <= self.lowest_score:
            raise ValueError("highest_score is not above lowest_score")
        if self.rubric is not None and self.threshold is None:
            raise ValueError("a rubric needs a threshold")
        if self.threshold is not None and not self.lowest_score <= self.threshold <= self.highest_score:
            raise ValueError(f"threshold is not between {self.lowest_score:g} and {self.highest_score:g}")
        return self


def load_schema(config: QualityConfig) -> dict[str, Any] | None:
    """Return the JSON schema of answers, None where there is none.

    Raises:
        ConfigError: the file is not there, not JSON, or no schema.
    """
    if not isinstance(config.json_schema, str):
        return config.json_schema
    key = f"create_data.quality.json_schema: {config.json_schema}"
    text = _read_text(config.json_schema, key)
    try:
        schema = json.loads(text)
        check_schema(schema)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{key}, line {error.lineno}: not JSON ({error.msg}).") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {error}.") from error
    return schema


def load_rubric(config: JudgeConfig) -> str | None:
    """Return the rubric's text, None where nothing is judged.

    Raises:
        ConfigError: its file is not there, or there is no text.
    """
    if config.rubric is None:
        return None
    is_file = "\n" not in config.rubric and config.rubric.endswith((".md", ".txt"))
    key = "create_data.judge.rubric"
    text = _read_text(config.rubric, f"{key}: {config.rubric}") if is_file else config.rubric
    if not text.strip():
        raise ConfigError(f"{key} is empty. Say what makes an answer good.")
    return text.strip()


def _read_text(path: str, key: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{key} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key} is not UTF-8 (byte {error.start}).") from error
