"""From an Answer to an Example or a Drop with its reason: a pure function, so new rules ask nothing again."""

from dataclasses import dataclass

import pyarrow as pa

from raydistill.core.answers import TOO_LONG, answer_from_row
from raydistill.core.records import Answer, Drop, Example, Manifest
from raydistill.dataset.layout import DROP_SCHEMA, EXAMPLE_SCHEMA, drop_to_row, example_to_row


@dataclass(frozen=True)
class Origin:
    """What is the same for every answer of a dataset."""

    teacher: str  # model and revision
    prompt_digest: str

    @classmethod
    def of(cls, draft: Manifest) -> "Origin":
        """Return what a dataset's manifest says of all its answers."""
        return cls(f"{draft.teacher['model']}@{draft.teacher['revision']}", draft.prompt_digest)


def keep(answer: Answer, origin: Origin) -> Example | Drop:
    """Return the Example of a good answer, or the Drop that says why it is none."""
    reason, detail = _fault(answer)
    if reason is not None:
        return Drop(answer.query_id, answer.sample_index, reason, detail)
    return Example(
        id=answer.id,
        query_id=answer.query_id,
        messages=answer.messages,
        response=answer.text,
        response_tokens=list(answer.tokens),
        teacher=origin.teacher,
        prompt_digest=origin.prompt_digest,
    )


def keep_table(answers: pa.Table, origin: Origin) -> tuple[pa.Table, pa.Table]:
    """Return (examples, drops) of a table of answers; each row is in one of the two."""
    verdicts = [keep(answer_from_row(row), origin) for row in answers.to_pylist()]
    examples = [example_to_row(verdict) for verdict in verdicts if isinstance(verdict, Example)]
    drops = [drop_to_row(verdict) for verdict in verdicts if isinstance(verdict, Drop)]
    return pa.Table.from_pylist(examples, schema=EXAMPLE_SCHEMA), pa.Table.from_pylist(drops, schema=DROP_SCHEMA)


def _fault(answer: Answer) -> tuple[str | None, str]:
    if answer.finish_reason == TOO_LONG:
        return TOO_LONG, answer.error or ""
    if answer.error is not None:
        return "failed", answer.error
    if answer.finish_reason == "length":
        return "truncated", f"no end after {answer.usage.completion_tokens} tokens"
    if answer.finish_reason != "stop":
        return "failed", f"finish reason {answer.finish_reason!r}"
    if not answer.text.strip():
        return "empty", ""
    return None, ""
