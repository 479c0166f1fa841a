"""The loss curve as a picture."""

import io
from collections.abc import Sequence
from typing import Any


def draw_curve(metrics: Sequence[dict[str, Any]]) -> bytes:
    """Return a PNG of training and validation loss over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120)
    axes = figure.subplots()
    for key, style in (("train/loss_nats", "-"), ("validation/loss_nats", "o-")):
        points = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=key.partition("/")[0])
    axes.set_xlabel("step")
    axes.set_ylabel("nats per completion token")
    axes.legend()
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
