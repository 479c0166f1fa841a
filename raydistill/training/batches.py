"""Which rows form a step, who computes which of them, and how they lie packed in one sequence.

The rows of a step depend on the seed, the batch size and the step alone, never on the number of workers;
packing and sharing only decide where each of them is computed.

Axes: T tokens of a packed sequence, N positions that predict a completion token.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from raydistill.core.records import digest

PACK_TOKENS = 2048  # attention of a packed sequence is quadratic in its length; longer rows stand alone


@dataclass(frozen=True)
class EncodedRow:
    """One training row as the student sees it: no P; the stop token ends the response and is a target."""

    id: str
    prompt_tokens: list[int]
    response_tokens: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole row."""
        return len(self.prompt_tokens) + len(self.response_tokens)


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Attributes:
        num_rows: training rows.
        batch_size: rows in a step, over all workers; the run's last step may hold fewer.
        num_epochs: how often each row comes.
        num_steps: optimizer steps.
        seed: decides the order of the rows in each epoch.
    """

    num_rows: int
    batch_size: int
    num_epochs: int
    num_steps: int
    seed: int


@dataclass(frozen=True)
class Packed:
    """Rows laid one behind the other; each sees itself alone.

    Attributes:
        tokens_T: token ids.
        positions_T: position in its own row.
        rows_T: index of the row a token belongs to.
        keep_N: positions whose next token is a completion token.
        targets_N: those next tokens; empty for the filler of a worker that has nothing to do.
    """

    tokens_T: list[int]
    positions_T: list[int]
    rows_T: list[int]
    keep_N: list[int]
    targets_N: list[int]


def plan_steps(num_rows: int, batch_size: int, num_epochs: int, max_steps: int | None, seed: int) -> Plan:
    """Return the plan: every row once an epoch, epochs run on without a gap, `max_steps` cuts it off."""
    num_steps = math.ceil(num_rows * num_epochs / batch_size)
    if max_steps is not None:
        num_steps = min(num_steps, max_steps)
    return Plan(num_rows, batch_size, num_epochs, num_steps, seed)


@lru_cache(maxsize=2)
def _order(num_rows: int, seed: int, epoch: int) -> list[int]:
    order = list(range(num_rows))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order


def rows_of_step(plan: Plan, step: int) -> list[int]:
    """Return the indices of the rows that form a step (counted from 0)."""
    first = step * plan.batch_size
    last = min(first + plan.batch_size, plan.num_rows * plan.num_epochs)
    return [
        _order(plan.num_rows, plan.seed, place // plan.num_rows)[place % plan.num_rows] for place in range(first, last)
    ]


def rows_digest(rows: Sequence[EncodedRow]) -> str:
    """Return what identifies these rows in this order."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(digest([row.id, row.prompt_tokens, row.response_tokens]).encode())
    return hasher.hexdigest()[:32]


def share_rows(rows: Sequence[EncodedRow], num_workers: int) -> list[list[EncodedRow]]:
    """Return each worker's rows, balanced by tokens: the longest first, each to the worker with the least."""
    shares: list[list[EncodedRow]] = [[] for _ in range(num_workers)]
    loads = [0] * num_workers
    for row in sorted(rows, key=lambda row: (-row.num_tokens, row.id)):
        worker = loads.index(min(loads))
        shares[worker].append(row)
        loads[worker] += row.num_tokens
    return shares


def _groups(rows: Sequence[EncodedRow], micro_batch_size: int | None) -> list[list[EncodedRow]]:
    groups: list[list[EncodedRow]] = []
    for row in rows:
        last = groups[-1] if groups else []
        tokens = sum(other.num_tokens for other in last) + row.num_tokens
        if last and tokens <= PACK_TOKENS and len(last) < (micro_batch_size or len(rows)):
            last.append(row)
        else:
            groups.append([row])
    return groups


def pack(rows: Sequence[EncodedRow], scored: bool = True) -> Packed:
    """Return rows laid one behind the other; with `scored` False they carry no target and add nothing to a loss."""
    tokens, positions, owners, keep, targets = [], [], [], [], []
    for index, row in enumerate(rows):
        start = len(tokens)
        tokens += [*row.prompt_tokens, *row.response_tokens]
        positions += range(row.num_tokens)
        owners += [index] * row.num_tokens
        first = start + len(row.prompt_tokens) - 1
        keep += range(first, first + len(row.response_tokens))
        targets += row.response_tokens
    if not scored:
        targets = []
    return Packed(tokens, positions, owners, keep, targets)


def micro_batches(
    rows: Sequence[EncodedRow], rank: int, num_workers: int, micro_batch_size: int | None = None
) -> list[Packed]:
    """Return one worker's packed micro-batches of a step: equally many for every worker.

    A worker with fewer gets fillers without targets, because every forward and backward is collective in ZeRO.
    """
    shares = [_groups(share, micro_batch_size) for share in share_rows(rows, num_workers)]
    most = max(len(groups) for groups in shares)
    packed = [pack(group) for group in shares[rank]]
    filler = min(rows, key=lambda row: (row.num_tokens, row.id))
    return packed + [pack([filler], scored=False)] * (most - len(packed))
