"""One optimizer step, one validation: what every worker does with its share of the rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from raydistill.core.errors import TrainingError
from raydistill.training.batches import PACK_TOKENS, EncodedRow, Packed, micro_batches, pack
from raydistill.training.head import Head, open_head
from raydistill.training.job import Objective
from raydistill.training.losses import chunked_sums, scale_to_step, score_recorded, score_teacher, score_tokens
from raydistill.training.model import Prefix, forward_hidden
from raydistill.training.teacher import Memory, teacher_hidden


@dataclass(frozen=True)
class Setting:
    """Where a worker stands.

    Attributes:
        rank: this worker, counted from 0.
        num_workers: all of them.
        device: this worker's.
        dtype: "float32" or "bfloat16".
        micro_batch_size: rows that are packed together at most; None for what fits.
        pack_tokens: tokens that are packed together at most; a longer row stands alone.
        objective: what is minimised where a teacher is known.
        prefix: what stands before the teacher's rows; see `teacher.open_prefix`.
        memory: what the teacher said already; None where every pass must be made, because they are collective.
    """

    rank: int
    num_workers: int
    device: torch.device
    dtype: str
    micro_batch_size: int | None = None
    pack_tokens: int = PACK_TOKENS["cpu"]
    objective: Objective = Objective()
    prefix: Prefix | None = None
    memory: Memory | None = None


@dataclass(frozen=True)
class Means:
    """What a step or a validation came to, over all workers, in nats a completion token.

    Attributes:
        loss: what is minimised.
        kl: KL(teacher || student) of the tokens that have a teacher; None where none has.
        cross_entropy: of all completion tokens.
        num_tokens: completion tokens.
    """

    loss: float
    kl: float | None
    cross_entropy: float
    num_tokens: int

    def to_metrics(self, stage: str) -> dict[str, float]:
        """Return the entries of metrics.jsonl under `stage/`."""
        found = {"loss_nats": self.loss, "kl_nats": self.kl, "cross_entropy_nats": self.cross_entropy}
        return {f"{stage}/{name}": value for name, value in found.items() if value is not None}


def _sum_over_workers(values: Sequence[float], setting: Setting) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64, device=setting.device)
    dist.all_reduce(total)
    return total.tolist()


def _sums(engine: Any, packed: Packed, setting: Setting) -> torch.Tensor:
    """Return the sums [3] of loss, KL and cross-entropy over a pack's completion tokens; the first has gradients."""
    teacher_MH = None
    if packed.lesson is not None:
        ask = setting.memory.recall if setting.memory is not None else teacher_hidden
        teacher_MH = ask(engine, packed.lesson, setting.prefix, setting.dtype, setting.device)
    hidden_NH = forward_hidden(engine, packed, setting.dtype, setting.device)
    with open_head(engine) as head:  # collective under ZeRO-3, so for fillers too
        return _scored(hidden_NH, packed, teacher_MH, head, setting.objective)


def _scored(
    hidden_NH: torch.Tensor, packed: Packed, teacher_MH: torch.Tensor | None, head: Head, objective: Objective
) -> torch.Tensor:
    """Return the sums of a pack: each position by its teacher's pass, its recorded soft labels, or its token alone."""
    device = hidden_NH.device
    targets_N = torch.tensor(packed.targets_N, device=device)
    sums = hidden_NH.sum().double() * torch.zeros(3, dtype=torch.float64, device=device)  # a filler's whole loss
    taught_M = packed.lesson.taught_M if packed.lesson else []
    taught_R = packed.recorded.taught_R if packed.recorded else []
    if packed.lesson and taught_M:
        assert teacher_MH is not None
        weights = [
            1.0 if row.is_generic else objective.kl_weight for row in packed.lesson.rows for _ in row.response_tokens
        ]
        part, tokens = _take(hidden_NH, targets_N, taught_M)
        score = score_teacher(tokens, teacher_MH, head, torch.tensor(weights, device=device), objective.kl_temperature)
        sums = sums + chunked_sums(part, head, score)
    if packed.recorded and taught_R:
        part, tokens = _take(hidden_NH, targets_N, taught_R)
        ids_RK = torch.from_numpy(packed.recorded.top_ids_RK).long().to(device)
        logprobs_RK = torch.from_numpy(packed.recorded.top_logprobs_RK).float().to(device)
        sums = sums + chunked_sums(part, head, score_recorded(tokens, ids_RK, logprobs_RK, objective.kl_weight))
    rest_N = sorted(set(range(len(targets_N))).difference(taught_M, taught_R))
    if rest_N:
        part, tokens = _take(hidden_NH, targets_N, rest_N)
        sums = sums + chunked_sums(part, head, score_tokens(tokens))
    return sums


def _take(hidden_NH: torch.Tensor, targets_N: torch.Tensor, places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    if len(places) == len(targets_N):
        return hidden_NH, targets_N
    chosen = torch.tensor(places, device=hidden_NH.device)
    return hidden_NH[chosen], targets_N[chosen]


def _count(batches: Sequence[Packed]) -> list[int]:
    """Return the completion tokens of some packs, and those of them that have a teacher."""
    taught = [
        len(packed.lesson.taught_M if packed.lesson else ()) + len(packed.recorded.taught_R if packed.recorded else ())
        for packed in batches
    ]
    return [sum(len(packed.targets_N) for packed in batches), sum(taught)]


def _means(sums: Sequence[float], num_tokens: float, num_taught: float) -> Means:
    loss, kl, cross_entropy = sums
    return Means(
        loss / num_tokens, kl / num_taught if num_taught else None, cross_entropy / num_tokens, round(num_tokens)
    )


def _pack_own(rows: Sequence[EncodedRow], setting: Setting) -> list[Packed]:
    return micro_batches(rows, setting.rank, setting.num_workers, setting.micro_batch_size, setting.pack_tokens)


def backward_step(engine: Any, rows: Sequence[EncodedRow], setting: Setting) -> Means:
    """Leave the gradients of a step's mean loss in the engine; all workers call it with the same rows.

    Raises:
        TrainingError: the loss is not finite.
    """
    batches = _pack_own(rows, setting)
    num_tokens, num_taught = _sum_over_workers(_count(batches), setting)
    total = torch.zeros(3, dtype=torch.float64, device=setting.device)
    for index, packed in enumerate(batches):
        engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
        sums = _sums(engine, packed, setting)
        total += sums.detach()
        engine.backward(scale_to_step(sums[0], round(num_tokens), setting.num_workers).float())
    means = _means(_sum_over_workers(total.tolist(), setting), num_tokens, num_taught)
    if not math.isfinite(means.loss):
        raise TrainingError(
            f"The loss became {means.loss}: set a lower learning_rate, or dtype=float32, and train again."
        )
    return means


def apply_step(engine: Any, learning_rate: float) -> None:
    """Move the weights by the gradients that `backward_step` left."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    engine.step()


def idle_step(engine: Any, row: EncodedRow, setting: Setting) -> None:
    """Let the optimizer create its state without moving a weight: gradients and rate are zero."""
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(forward_hidden(engine, pack([row]), setting.dtype, setting.device).float().sum() * 0.0)
    apply_step(engine, 0.0)


@torch.no_grad()
def validate(engine: Any, rows: Sequence[EncodedRow], batch_size: int, setting: Setting) -> Means:
    """Return the means over all rows; all workers call it together."""
    batches = [
        packed
        for first in range(0, len(rows), batch_size)
        for packed in _pack_own(rows[first : first + batch_size], setting)
    ]
    total = torch.zeros(3, dtype=torch.float64, device=setting.device)
    for packed in batches:
        total += _sums(engine, packed, setting)
    sums = _sum_over_workers([*total.tolist(), *_count(batches)], setting)
    return _means(sums[:3], *sums[3:])


def find_not_finite(
    engine: Any, rows: Sequence[EncodedRow], batch_size: int, setting: Setting, most: int
) -> list[EncodedRow]:
    """Return the first rows whose own loss is not finite, `most` at most; all workers call it together."""
    found: list[EncodedRow] = []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        if len(found) < most and not math.isfinite(validate(engine, batch, batch_size, setting).loss):
            found += [row for row in batch if not math.isfinite(validate(engine, [row], 1, setting).loss)]
    return found[:most]
