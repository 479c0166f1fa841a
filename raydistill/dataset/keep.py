"""From an Answer to an Example or a Drop with its reason: a pure function, so new rules ask nothing again."""

from dataclasses import dataclass

from raydistill.core.answers import TOO_LONG
from raydistill.core.records import Answer, Drop, Example


@dataclass(frozen=True)
class Origin:
    """What is the same for every answer of a dataset."""

    teacher: str  # model and revision
    prompt_digest: str


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
