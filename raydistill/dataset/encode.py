"""From an Example to the token ids a trainer uses, and which examples are raw or for validation."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

from raydistill.core.prompts import student_messages
from raydistill.core.records import Example
from raydistill.renderers import Renderer, get_renderer

VALIDATION_SHARE = 0.05
VALIDATION_MINIMUM = 8


def encode_examples(
    examples: list[Example], tokenizer: Any, renderer_name: str = "chat", raw_fraction: float = 0.1
) -> list[tuple[list[int], list[int]]]:
    """Return (prompt token ids, target token ids) of each example, in order; see `encode_example`.

    Args:
        examples: of `read_examples`, called with the digest of this very tokenizer.
        tokenizer: the student's.
        renderer_name: "chat" or "raw".
        raw_fraction: about which share of the examples shows the query without the chat template.
    """
    renderer, raw_renderer = get_renderer(renderer_name, tokenizer), get_renderer("raw", tokenizer)
    return [encode_example(example, renderer, raw_renderer, is_raw(example.id, raw_fraction)) for example in examples]


def encode_example(
    example: Example, renderer: Renderer, raw_renderer: Renderer | None, raw: bool
) -> tuple[list[int], list[int]]:
    """Return an example's prompt token ids (without P) and its target token ids, the stop token included.

    The recorded response tokens are the target where they are there; `read_examples` leaves them out where the teacher
    has another tokenizer than the student, and then the text is encoded anew.

    Args:
        example: what the teacher answered to a query.
        renderer: of the student's model.
        raw_renderer: the "raw" renderer, for rows that show the query without a chat template.
        raw: whether this is such a row. A conversation of several turns has no raw form and stays a chat.
    """
    messages = student_messages(example.messages)
    if raw and raw_renderer is not None and len(messages) == 1:
        prompt = raw_renderer.build_generation_prompt(messages)
    else:
        prompt = renderer.build_generation_prompt(messages)
    if example.response_tokens is not None:
        return prompt.to_ints(), list(example.response_tokens)
    return prompt.to_ints(), renderer.encode_response(example.response)


def shorten_history(example: Example) -> Iterator[Example]:
    """Yield the example with ever fewer of its oldest turns: a system text stays, and a user's turn comes first."""
    messages = example.messages
    first = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    for start in range(first + 1, len(messages)):
        if messages[start]["role"] == "user":
            yield dataclasses.replace(example, messages=[*messages[:first], *messages[start:]])


def _position(kind: str, identifier: str) -> float:
    """Return a number in [0, 1) that an id always has, independent of the others of its kind."""
    return int(hashlib.sha256(f"{kind}:{identifier}".encode()).hexdigest()[:12], 16) / 16**12


def is_raw(example_id: str, raw_fraction: float) -> bool:
    """Return whether an example is shown without the chat template; the same for every epoch and run."""
    return _position("raw", example_id) < raw_fraction


def is_validation(query_id: str, share: float = VALIDATION_SHARE) -> bool:
    """Return whether a query's examples are for validation, going by its id alone."""
    return _position("validation", query_id) < share


def split_validation(
    examples: list[Example], share: float = VALIDATION_SHARE, at_least: int = VALIDATION_MINIMUM
) -> tuple[list[Example], list[Example]]:
    """Return (training, validation) examples: whole queries, by hash, at least 8 rows but never over half of them."""
    queries = sorted({example.query_id for example in examples}, key=lambda query: _position("validation", query))
    rows = dict.fromkeys(queries, 0)
    for example in examples:
        rows[example.query_id] += 1
    chosen: set[str] = set()
    num_chosen = 0
    for query in queries:
        if not is_validation(query, share) and num_chosen >= at_least:
            break
        if num_chosen + rows[query] > len(examples) / 2:
            break
        chosen.add(query)
        num_chosen += rows[query]
    training = [example for example in examples if example.query_id not in chosen]
    return training, [example for example in examples if example.query_id in chosen]
