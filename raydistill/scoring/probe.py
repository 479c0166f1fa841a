"""Build a version's probe: the training tokens that the adapter moves most, with their float32 log-probabilities."""

from collections.abc import Sequence
from pathlib import Path

from raydistill.core.records import MIN_PROBE_SHIFT_NATS, ProbePoint
from raydistill.scoring.logprobs import Row, completion_logprobs
from raydistill.scoring.model import load_model

MAX_CANDIDATE_ROWS = 32
MAX_PREFIX_TOKENS = 512  # a probe is asked of every replica at every load


def build_probe(
    model_dir: str, adapter_dir: str | Path, rows: Sequence[Row], num_points: int = 16
) -> tuple[list[ProbePoint], bool]:
    """Return the probe of a trained adapter, and whether it can prove anything.

    The candidates are the shortest training rows, each cut to MAX_PREFIX_TOKENS; of their recorded next tokens those
    are taken that base and adapter differ on most, each row's largest first, so that one row does not fill the probe.

    Args:
        model_dir: local folder of the base model.
        adapter_dir: local folder of the trained adapter.
        rows: (prompt tokens, response tokens) of the training data.
        num_points: how many next-token checks.
    """
    candidates = sorted(
        ((list(p), list(r)) for p, r in rows if p and r), key=lambda row: (len(row[0]) + len(row[1]), row)
    )
    cut = [
        (p, r[: MAX_PREFIX_TOKENS + 1 - len(p)])
        for p, r in candidates[:MAX_CANDIDATE_ROWS]
        if len(p) <= MAX_PREFIX_TOKENS
    ]
    if not cut:
        return [], False
    model = load_model(model_dir, adapter_dir)
    base = completion_logprobs(model, cut, adapted=False)
    adapter = completion_logprobs(model, cut)
    ranked: list[tuple[int, float, ProbePoint]] = []
    for (prompt, response), before, after in zip(cut, base, adapter, strict=True):
        points = [
            ProbePoint(prompt + response[:step], token, float(before[step]), float(after[step]))
            for step, token in enumerate(response)
        ]
        points.sort(key=lambda point: -abs(point.adapter - point.base))
        ranked += [(turn, -abs(point.adapter - point.base), point) for turn, point in enumerate(points)]
    ranked.sort(key=lambda entry: entry[:2])
    probe = [point for _, _, point in ranked[:num_points]]
    shift = sum(abs(point.adapter - point.base) for point in probe) / len(probe)
    return probe, shift >= MIN_PROBE_SHIFT_NATS
