"""The next-token probe: does what a replica serves move the recorded tokens as the published adapter does?"""

import math
from collections.abc import Sequence

from raydistill.core.records import MIN_PROBE_SHIFT_NATS, ProbePoint

NUM_POINTS = 16
MAX_SHARE = 0.25  # the served mean difference may be at most this share of the adapter's mean shift


def probe_shift(points: Sequence[ProbePoint]) -> float:
    """Return mean |adapter - base| over the points, in nats; 0 without points."""
    return sum(abs(point.adapter - point.base) for point in points) / len(points) if points else 0.0


def probe_passes(points: Sequence[ProbePoint], served: Sequence[float]) -> tuple[bool, str]:
    """Return whether the served log-probabilities are the adapter's, and the reason in one sentence.

    Where the adapter itself moves the tokens by less than MIN_PROBE_SHIFT_NATS (an unverifiable version), only finite
    values can be asked for, and the reason says so.

    Args:
        points: the version's probe.
        served: log-probability of each point's token after its prefix, in nats, in the same order.
    """
    if len(served) != len(points):
        return (
            False,
            f"the probe has {len(points)} points, but {len(served)} log-probabilities were served",
        )
    bad = [index for index, value in enumerate(served) if not math.isfinite(value)]
    if bad:
        return (
            False,
            f"{len(bad)} of {len(points)} served log-probabilities are not finite (the first at point {bad[0]})",
        )
    shift = probe_shift(points)
    if shift < MIN_PROBE_SHIFT_NATS:
        return (
            True,
            f"unverifiable: the adapter moves the probe by {shift:.2f} nat only; all values are finite",
        )
    off = sum(abs(value - point.adapter) for value, point in zip(served, points, strict=True)) / len(points)
    limit = MAX_SHARE * shift
    fact = f"served differs from the adapter by {off:.3f} nat on average; at most {limit:.3f} (a quarter of its shift)"
    return off <= limit, fact
