"""KL to the prompted teacher, and how far the served log-probabilities are from the published files'; float32 torch."""

from collections.abc import Callable, Sequence
from typing import Any

from raydistill.core.errors import ServiceError
from raydistill.core.records import TokenResult
from raydistill.evaluation.metrics import gap_closed
from raydistill.evaluation.reference import Reference
from raydistill.scoring.arms import open_arm
from raydistill.scoring.logprobs import completion_logprobs, kl_per_token
from raydistill.scoring.model import load_model


def measure_kl(
    model: Any,
    teacher_model: Any,
    reference: Reference,
    prompts: tuple[list[list[int]], list[list[int]]],
    on_step: Callable[[float], None] = lambda share: None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return mean nats per token of KL(teacher with P || arm) on the teacher's answers at temperature 1.

    Args:
        model: the student, adapter on; the base is the same with the adapter off.
        teacher_model: the model that answers with P in front (the student's own base where it is the same one).
        reference: the teacher's sampled answers.
        prompts: token ids of each query with P (the teacher's) and without (the student's).
        on_step: called with the share done.
        seed: of the bootstrap.

    Returns:
        base, student, gap_closed, gap_closed_interval, tokens.
    """
    with_p, without_p = prompts
    replies = [reply for reply in reference.sampled if reply.tokens]
    responses = [reply.tokens for reply in replies]
    target = open_arm(teacher_model, [with_p[reply.query] for reply in replies], adapted=False)
    bare = [without_p[reply.query] for reply in replies]
    arms = {"base": open_arm(model, bare, adapted=False), "student": open_arm(model, bare)}
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        on_step(done / len(replies))

    kl = kl_per_token(target, arms, responses, count)
    sums = {name: [float(row.double().sum()) for row in rows] for name, rows in kl.items()}
    num_tokens = sum(map(len, responses))
    share, interval = gap_closed(sums["base"], sums["student"], [reply.query for reply in replies], seed)
    return {
        "base": sum(sums["base"]) / num_tokens,
        "student": sum(sums["student"]) / num_tokens,
        "gap_closed": share,
        "gap_closed_interval": interval,
        "tokens": num_tokens,
    }


def measure_served_difference(model: Any, prompts: Sequence[list[int]], results: Sequence[TokenResult]) -> float:
    """Return mean |served - float32| log-probability, in nats, of the tokens that the served student chose itself.

    Args:
        model: the student in float32, adapter on.
        prompts: what was asked.
        results: what was served, log-probabilities with it.

    Raises:
        ServiceError: log-probabilities are missing.
    """
    if any(len(result.logprobs) != len(result.tokens) for result in results):
        raise ServiceError("the endpoint gave no log-probabilities for some tokens, so they cannot be compared.")
    rows = [(prompt, result.tokens) for prompt, result in zip(prompts, results, strict=True)]
    exact = completion_logprobs(model, rows)
    differences = [
        abs(served - float(ours))
        for result, row in zip(results, exact, strict=True)
        for served, ours in zip(result.logprobs, row, strict=True)
    ]
    return sum(differences) / len(differences)


def load_arms(model_dir: str, adapter_dir: str, teacher_dir: str) -> tuple[Any, Any]:
    """Return (student with adapter, teacher); one model where the teacher is the student's own base."""
    model = load_model(model_dir, adapter_dir)
    return model, model if teacher_dir == model_dir else load_model(teacher_dir)
