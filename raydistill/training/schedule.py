"""The learning rate of every step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes.

    Attributes:
        peak: the rate that the warm-up ends with.
        kind: "linear", "cosine" or "constant", from there on.
        warmup_steps: steps of a line up to the peak.
        num_steps: of the whole run.
    """

    peak: float
    kind: str
    warmup_steps: int
    num_steps: int

    def rate_at(self, step: int) -> float:
        """Return the rate of a step, counted from 0; after the last one a falling rate would be 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        left = (self.num_steps - step) / max(1, self.num_steps - self.warmup_steps)
        shares = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}
        return self.peak * shares[self.kind]
