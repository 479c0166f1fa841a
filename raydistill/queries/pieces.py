"""Cuts P into pieces, so that the teacher can be shown one at a time when it writes queries.

The rule. The system texts of P, and the last message of a template, are cut at their Markdown headings into sections
(text without headings is one); a section that is longer than MAX_CHARS is cut at blank lines, then between sentences.
Each list item of a section is a rule of P; in a section without a list each sentence is. Each pair of a user's and an
assistant's message is a shot.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Literal

from raydistill.core.prompts import QUERY_SLOT, Prompt

MAX_CHARS = 1200
MIN_RULE_CHARS = 6  # what is shorter is a label ("Note:") and asks for nothing; a rule in Chinese is seven

_HEADING = re.compile(r"^(?=#{1,6} )", re.MULTILINE)
_MARK = r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]"
_ITEM = re.compile(rf"^{_MARK}(.*(?:\n(?!{_MARK})[ \t]+\S.*)*)", re.MULTILINE)  # with lines that are indented below it
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])")  # noqa: RUF001 - Chinese and Japanese


@dataclass(frozen=True)
class Piece:
    """A part of P.

    Attributes:
        name: what an expanded query records as its origin, like "P: section 2".
        kind: a section (or a part of one), a rule, or a shot.
        text: as it stands in P, the query's slot left out; a shot's question and answer.
        question: a shot's question; "" otherwise.
    """

    name: str
    kind: Literal["section", "rule", "shot"]
    text: str
    question: str = ""


def cut_prompt(prompt: Prompt) -> list[Piece]:
    """Return the pieces of P in their order: sections with the rules that stand in them, and shots."""
    texts = [message["content"] for message in prompt.messages if message["role"] == "system"]
    turns = [message for message in prompt.messages if message["role"] != "system"]
    if prompt.form == "template":
        texts.append(turns.pop()["content"].replace(QUERY_SLOT, ""))
    sections = [part.strip() for text in texts for section in _HEADING.split(text) for part in _shorten(section)]
    pieces: list[Piece] = []
    num_rules = 0
    for number, section in enumerate((section for section in sections if section), start=1):
        pieces.append(Piece(f"P: section {number}", "section", section))
        for rule in _rules_of(section):
            num_rules += 1
            pieces.append(Piece(f"P: rule {num_rules}", "rule", rule))
    for number, (asked, answered) in enumerate(_pairs_of(turns), start=1):
        pieces.append(Piece(f"P: shot {number}", "shot", f"Message: {asked}\nAnswer: {answered}", asked))
    return pieces


def _rules_of(section: str) -> list[str]:
    body = section.partition("\n")[2] if _HEADING.match(section) else section
    rules = [item.group(1) for item in _ITEM.finditer(body)] or _SENTENCE_END.split(body)
    return [rule for rule in (" ".join(rule.split()) for rule in rules) if len(rule) >= MIN_RULE_CHARS]


def _pairs_of(turns: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [
        (turn["content"], answer["content"])
        for turn, answer in itertools.pairwise(turns)
        if turn["role"] == "user" and answer["role"] == "assistant"
    ]


def _shorten(section: str) -> list[str]:
    """Return a section in parts of at most MAX_CHARS, cut at blank lines, else between sentences, else anywhere."""
    for separator in ("\n\n", "\n", None):
        if len(section) <= MAX_CHARS:
            break
        blocks = _SENTENCE_END.split(section) if separator is None else section.split(separator)
        if len(blocks) > 1:
            return [part for joined in _join(blocks, separator or " ") for part in _shorten(joined)]
    if len(section) <= MAX_CHARS:
        return [section]
    return [section[start : start + MAX_CHARS] for start in range(0, len(section), MAX_CHARS)]


def _join(blocks: list[str], separator: str) -> list[str]:
    """Return neighbouring blocks joined as long as they fit into MAX_CHARS."""
    joined = [blocks[0]]
    for block in blocks[1:]:
        if len(joined[-1]) + len(separator) + len(block) <= MAX_CHARS:
            joined[-1] += separator + block
        else:
            joined.append(block)
    return joined
