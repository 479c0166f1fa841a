"""Which rows form a step, who computes which of them, and how they lie packed in one sequence.

The rows of a step depend on the seed, the batch size and the step alone, never on the number of workers;
packing and sharing only decide where each of them is computed.

Axes: T tokens of a packed sequence, N positions that predict a completion token, M those of them that a teacher's
pass says something of, R those of which a teacher's k most likely tokens are recorded.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from raydistill.core.records import digest

# Of a packed sequence, where none are set. On a CPU what a long pack keeps for its backward pass is dear, and time is
# not: rows attend row by row. A GPU is kept busy by it; and ZeRO-3 gathers all weights once a pack.
PACK_TOKENS = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class EncodedRow:
    """One training row as the student sees it: no P; the stop token ends the response and is a target.

    Attributes:
        teacher_tokens: what the teacher sees between P's shared prefix and the response; None where no teacher's pass
            is made for this row.
        is_generic: it has nothing to do with P: its teacher is the untouched base, which sees no shared prefix.
        top_ids: int32 [len(response), k], the recorded tokens of another teacher; see core.topk.
        top_logprobs: float16 [len(response), k], theirs.
    """

    id: str
    prompt_tokens: list[int]
    response_tokens: list[int]
    teacher_tokens: list[int] | None = None
    is_generic: bool = False
    top_ids: np.ndarray | None = field(default=None, compare=False)
    top_logprobs: np.ndarray | None = field(default=None, compare=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole row, as the student sees it."""
        return len(self.prompt_tokens) + len(self.response_tokens)

    @property
    def longest(self) -> int:
        """Tokens of the row in the longer of the two passes; the shared prefix does not count."""
        return max(len(self.prompt_tokens), len(self.teacher_tokens or ())) + len(self.response_tokens)


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Attributes:
        num_rows: training rows.
        batch_size: rows in a step, over all workers; the run's last step may hold fewer.
        num_epochs: how often each row comes.
        num_steps: optimizer steps.
        seed: decides the order of the rows in each epoch.
        num_generic: rows that stand behind the training rows and belong to no epoch.
        retain_fraction: how many of these join a step, as a share of batch_size.
    """

    num_rows: int
    batch_size: int
    num_epochs: int
    num_steps: int
    seed: int
    num_generic: int = 0
    retain_fraction: float = 0.0


@dataclass(frozen=True)
class Laid:
    """Rows laid one behind the other; each sees itself alone.

    Attributes:
        tokens_T: token ids.
        positions_T: position in its own row.
        rows_T: index of the row a token belongs to.
        keep_N: positions whose next token is a completion token.
    """

    tokens_T: list[int]
    positions_T: list[int]
    rows_T: list[int]
    keep_N: list[int]


@dataclass(frozen=True)
class Lesson(Laid):
    """The same rows as the teacher sees them, after P's shared prefix.

    Attributes:
        behind_T: whether the token's row stands behind the shared prefix; a generic one does not.
        taught_M: indices among the student's N positions; keep_N are the teacher's for them. Empty in a filler.
        rows: those that it is about.
    """

    behind_T: list[bool]
    taught_M: list[int]
    rows: tuple[EncodedRow, ...]


@dataclass(frozen=True)
class Recorded:
    """What another teacher's recorded soft labels say of a pack's rows.

    Attributes:
        taught_R: indices among the student's N positions.
        top_ids_RK: int32; -1 is padding.
        top_logprobs_RK: float16, in nats.
    """

    taught_R: list[int]
    top_ids_RK: np.ndarray
    top_logprobs_RK: np.ndarray


@dataclass(frozen=True)
class Packed(Laid):
    """The rows of one pass of the student.

    Attributes:
        targets_N: the tokens that follow keep_N; empty for the filler of a worker that has nothing to do.
        lesson: the teacher's pass; None where no row of the step has one.
        recorded: None where no row has soft labels.
    """

    targets_N: list[int]
    lesson: Lesson | None = None
    recorded: Recorded | None = None


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
    """Return the indices of the rows that form a step (counted from 0), the generic ones last, each in its turn."""
    first = step * plan.batch_size
    last = min(first + plan.batch_size, plan.num_rows * plan.num_epochs)
    rows = [
        _order(plan.num_rows, plan.seed, place // plan.num_rows)[place % plan.num_rows] for place in range(first, last)
    ]
    if plan.num_generic:
        share = plan.retain_fraction * plan.batch_size
        turns = range(math.floor(step * share), math.floor((step + 1) * share))
        rows += [plan.num_rows + turn % plan.num_generic for turn in turns]
    return rows


def rows_digest(rows: Sequence[EncodedRow], teacher_prefix: Sequence[int] = ()) -> str:
    """Return what identifies these rows in this order, and what their teacher sees first."""
    hasher = hashlib.sha256()
    if teacher_prefix:
        hasher.update(digest(list(teacher_prefix)).encode())
    for row in rows:
        hasher.update(digest([row.id, row.prompt_tokens, row.response_tokens]).encode())
        if row.teacher_tokens is not None:
            hasher.update(digest([row.is_generic, row.teacher_tokens]).encode())
        if row.top_ids is not None and row.top_logprobs is not None:
            hasher.update(row.top_ids.tobytes() + row.top_logprobs.tobytes())
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


def group_rows(rows: Sequence[EncodedRow], micro_batch_size: int | None, pack_tokens: int) -> list[list[EncodedRow]]:
    """Return the rows in their order, as they are packed: so many at most, within pack_tokens unless one is longer."""
    groups: list[list[EncodedRow]] = []
    for row in rows:
        last = groups[-1] if groups else []
        tokens = sum(other.longest for other in last) + row.longest
        if last and tokens <= pack_tokens and len(last) < (micro_batch_size or len(rows)):
            last.append(row)
        else:
            groups.append([row])
    return groups


def pack(rows: Sequence[EncodedRow], scored: bool = True, needs_lesson: bool = False) -> Packed:
    """Return rows laid one behind the other.

    Args:
        rows: at least one.
        scored: False leaves the targets out, so that the pack adds nothing to a loss.
        needs_lesson: there is a teacher's pass even where none of these rows has a teacher.
    """
    laid = _lay([(row.prompt_tokens, row.response_tokens, []) for row in rows])
    places = _places(rows) if scored else [[] for _ in rows]
    return Packed(
        laid.tokens_T,
        laid.positions_T,
        laid.rows_T,
        laid.keep_N,
        targets_N=[token for row in rows for token in row.response_tokens] if scored else [],
        lesson=_find_lesson(rows, places, needs_lesson),
        recorded=_collect_recorded(rows, places),
    )


def _lay(rows: Sequence[tuple[list[int], list[int], list[int]]]) -> Laid:
    """Return rows of (what comes before, the completion tokens that are seen, those that are only predicted)."""
    tokens, positions, owners, keep = [], [], [], []
    for index, (before, seen, predicted) in enumerate(rows):
        first = len(tokens) + len(before) - 1
        keep += range(first, first + len(seen) + len(predicted))
        tokens += [*before, *seen]
        positions += range(len(before) + len(seen))
        owners += [index] * (len(before) + len(seen))
    return Laid(tokens, positions, owners, keep)


def _places(rows: Sequence[EncodedRow]) -> list[list[int]]:
    """Return each row's indices among the N positions of all."""
    places, start = [], 0
    for row in rows:
        places.append(list(range(start, start + len(row.response_tokens))))
        start += len(row.response_tokens)
    return places


def make_lesson(rows: Sequence[EncodedRow], taught_M: list[int]) -> Lesson:
    """Return the teacher's pass over rows that all have teacher_tokens."""
    laid = _lay([(row.teacher_tokens or [], row.response_tokens[:-1], row.response_tokens[-1:]) for row in rows])
    return Lesson(
        laid.tokens_T,
        laid.positions_T,
        laid.rows_T,
        laid.keep_N,
        behind_T=[not rows[index].is_generic for index in laid.rows_T],
        taught_M=taught_M,
        rows=tuple(rows),
    )


def _find_lesson(rows: Sequence[EncodedRow], places: list[list[int]], needs_lesson: bool) -> Lesson | None:
    taught = [(row, own) for row, own in zip(rows, places, strict=True) if row.teacher_tokens is not None]
    if taught:
        return make_lesson([row for row, _ in taught], [place for _, own in taught for place in own])
    # ZeRO-3's passes are collective: a worker whose rows have no teacher takes part with one token.
    return Lesson(rows[0].prompt_tokens[:1], [0], [0], [0], [False], [], ()) if needs_lesson else None


def _collect_recorded(rows: Sequence[EncodedRow], places: list[list[int]]) -> Recorded | None:
    found = [
        (row.top_ids, row.top_logprobs, own)
        for row, own in zip(rows, places, strict=True)
        if own and row.top_ids is not None and row.top_logprobs is not None
    ]
    if not found:
        return None
    return Recorded(
        [place for *_, own in found for place in own],
        np.concatenate([ids for ids, *_ in found]),
        np.concatenate([logprobs for _, logprobs, _ in found]),
    )


def micro_batches(
    rows: Sequence[EncodedRow], rank: int, num_workers: int, micro_batch_size: int | None, pack_tokens: int
) -> list[Packed]:
    """Return one worker's packed micro-batches of a step: equally many, of equally many passes, for every worker.

    A worker with fewer gets fillers without targets, because every forward and backward is collective in ZeRO.
    """
    shares = [group_rows(share, micro_batch_size, pack_tokens) for share in share_rows(rows, num_workers)]
    most = max(len(groups) for groups in shares)
    needs_lesson = any(row.teacher_tokens is not None for row in rows)
    packed = [pack(group, needs_lesson=needs_lesson) for group in shares[rank]]
    filler = min(rows, key=lambda row: (row.num_tokens, row.id))
    return packed + [pack([filler], scored=False, needs_lesson=needs_lesson)] * (most - len(packed))
