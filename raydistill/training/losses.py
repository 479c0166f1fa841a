"""The loss of a step, the same on any number of workers.

Axes: N positions that predict a completion token, V vocabulary.
"""

import torch
import torch.nn.functional as F


def completion_loss_sum(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy in nats; without targets a zero that still carries gradients (of zero).

    Args:
        logits_NV: float32; where `targets_N` is empty any N does.
        targets_N: the completion tokens.
    """
    if targets_N.numel() == 0:
        return logits_NV.sum() * 0.0
    return F.cross_entropy(logits_NV, targets_N, reduction="sum")


def scale_to_step(loss_sum: torch.Tensor, num_targets: int, num_workers: int) -> torch.Tensor:
    """Return what a worker calls backward on.

    Args:
        loss_sum: of this micro-batch.
        num_targets: completion tokens of the step over all workers and micro-batches.
        num_workers: DeepSpeed divides the sum of the workers' gradients by it; the factor undoes that.
    """
    return loss_sum * (num_workers / num_targets)
