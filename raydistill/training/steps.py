"""One optimizer step, one validation: what every worker does with its share of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from raydistill.core.errors import TrainingError
from raydistill.training.batches import EncodedRow, Packed, micro_batches
from raydistill.training.losses import completion_loss_sum, scale_to_step
from raydistill.training.model import forward_packed


@dataclass(frozen=True)
class Setting:
    """Where a worker stands.

    Attributes:
        rank: this worker, counted from 0.
        num_workers: all of them.
        device: this worker's.
        dtype: "float32" or "bfloat16".
        micro_batch_size: rows that are packed together at most; None for what fits.
    """

    rank: int
    num_workers: int
    device: torch.device
    dtype: str
    micro_batch_size: int | None = None


def _sum_over_workers(value: float, setting: Setting) -> float:
    total = torch.tensor(value, dtype=torch.float64, device=setting.device)
    dist.all_reduce(total)
    return total.item()


def _loss_sum(engine: Any, packed: Packed, setting: Setting) -> torch.Tensor:
    logits_NV = forward_packed(engine, packed, setting.dtype, setting.device)
    return completion_loss_sum(logits_NV, torch.tensor(packed.targets_N, device=setting.device))


def backward_step(engine: Any, rows: Sequence[EncodedRow], setting: Setting) -> tuple[float, int]:
    """Leave the gradients of a step's mean loss in the engine; all workers call it with the same rows.

    Returns:
        The step's loss in nats a completion token, and the number of those tokens.

    Raises:
        TrainingError: the loss is not finite.
    """
    batches = micro_batches(rows, setting.rank, setting.num_workers, setting.micro_batch_size)
    num_targets = round(_sum_over_workers(sum(len(packed.targets_N) for packed in batches), setting))
    loss_sum = 0.0
    for index, packed in enumerate(batches):
        engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
        loss = _loss_sum(engine, packed, setting)
        loss_sum += loss.item()
        engine.backward(scale_to_step(loss, num_targets, setting.num_workers))
    mean = _sum_over_workers(loss_sum, setting) / num_targets
    if not torch.isfinite(torch.tensor(mean)):
        raise TrainingError(f"The loss became {mean}: set a lower learning_rate, or dtype=float32, and train again.")
    return mean, num_targets


def apply_step(engine: Any, learning_rate: float) -> None:
    """Move the weights by the gradients that `backward_step` left."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    engine.step()


def idle_step(engine: Any, row: EncodedRow, setting: Setting) -> None:
    """Let the optimizer create its state without moving a weight: gradients and rate are zero."""
    engine.set_gradient_accumulation_boundary(True)
    logits_NV = forward_packed(engine, micro_batches([row], 0, 1)[0], setting.dtype, setting.device)
    engine.backward(logits_NV.sum() * 0.0)
    apply_step(engine, 0.0)


@torch.no_grad()
def validate(engine: Any, rows: Sequence[EncodedRow], batch_size: int, setting: Setting) -> float:
    """Return the mean loss in nats a completion token over all rows; all workers call it together."""
    loss_sum, num_targets = 0.0, 0
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        for packed in micro_batches(batch, setting.rank, setting.num_workers, setting.micro_batch_size):
            loss_sum += _loss_sum(engine, packed, setting).item()
            num_targets += len(packed.targets_N)
    return _sum_over_workers(loss_sum, setting) / _sum_over_workers(num_targets, setting)
