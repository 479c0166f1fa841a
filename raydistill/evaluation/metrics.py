"""Pure arithmetic on answers: shares, agreement, and the share of a gap with its bootstrap interval."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from raydistill.evaluation.checks import is_valid, read_labels
from raydistill.evaluation.config import CheckConfig
from raydistill.evaluation.reference import Reply

NUM_RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percent


def valid_share(replies: Sequence[Reply], check: CheckConfig) -> float:
    """Return the share of replies that satisfy the task's check."""
    return sum(is_valid(reply.text, reply.finished, check) for reply in replies) / len(replies)


def measure_agreement(teacher: Sequence[Reply], student: Sequence[Reply], check: CheckConfig) -> dict[str, Any]:
    """Return how often the student's labels are the teacher's greedy ones, over the teacher's valid answers.

    Returns:
        student and majority: share of answers in which all label fields agree, for the student and for the best
        constant answer (chosen in hindsight); fields: the same for each field; queries: how many count. The shares
        are None where the task has no labels or the teacher gave none.
    """
    pairs = [
        (truth, read_labels(theirs.text, theirs.finished, check))
        for ours, theirs in zip(teacher, student, strict=True)
        if (truth := read_labels(ours.text, ours.finished, check)) is not None
    ]
    if not pairs:
        return {"student": None, "majority": None, "fields": {}, "queries": 0}
    fields = {
        label: {
            "student": sum(found is not None and found[i] == truth[i] for truth, found in pairs) / len(pairs),
            "majority": _top_share([truth[i] for truth, _ in pairs]),
        }
        for i, label in enumerate(check.labels)
    }
    return {
        "student": sum(found == truth for truth, found in pairs) / len(pairs),
        "majority": _top_share([truth for truth, _ in pairs]),
        "fields": fields,
        "queries": len(pairs),
    }


def _top_share(values: Sequence[Any]) -> float:
    return Counter(values).most_common(1)[0][1] / len(values)


def gap_closed(
    base: Sequence[float], student: Sequence[float], queries: Sequence[int], seed: int = 0
) -> tuple[float, list[float]]:
    """Return 1 - student/base of summed KL, and its 95 % bootstrap interval over queries.

    Args:
        base: nats summed over the tokens of each answer, for the bare base.
        student: the same for the student.
        queries: the query that each answer is on; answers on one query are drawn together.
        seed: of the resampling.
    """
    names, groups = np.unique(np.asarray(queries), return_inverse=True)
    sums_2Q = np.zeros((2, len(names)))
    for row, values in enumerate((base, student)):
        np.add.at(sums_2Q[row], groups, np.asarray(values, dtype=float))
    base_total, student_total = sums_2Q.sum(axis=1)
    draws_RQ = np.random.default_rng(seed).integers(len(names), size=(NUM_RESAMPLES, len(names)))
    resampled = 1 - sums_2Q[1][draws_RQ].sum(axis=1) / np.maximum(sums_2Q[0][draws_RQ].sum(axis=1), 1e-12)
    low, high = np.percentile(resampled, INTERVAL)
    return float(1 - student_total / max(base_total, 1e-12)), [float(low), float(high)]
