"""What the adapters of one layer add to it on CPU, as products that are laid out once.

What costs is not the arithmetic (a fourteenth of the base's at rank 32) but what stands around it. So the factors of
all slices of a layer (q, k and v, say) are one pair of matrices, laid out once for oneDNN as the base's weights are:
torch.mm lays its second operand out anew at each call. And a few rows with several adapters are multiplied by all
adapters' factors at once. Of SmolLM2-135M's layers, rank 32, on two cores, 32 rows with one adapter take 1.35 times
the base's time instead of 1.5, and 1,280 rows 1.2 times.

Axes: N tokens of the batch, I inputs, O outputs of all slices, R rank, summed over the slices, S adapter slots.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from vllm import _custom_ops as ops

Group = tuple[int, torch.Tensor | None]  # adapter slot; its rows, or None for all of them
Factors = tuple[torch.Tensor, torch.Tensor]  # of one slot: [R, I] and [R, O]
FEW_ROWS = 256  # up to so many, what is to be added is made first; of more it would leave the cores' caches
JOINT_ROWS = 512  # rows times slots: up to so many, the products of all adapters at once are faster than each one's
LAYOUTS_A_STEP = 8  # at least; each is 0.2 to 0.5 ms of SmolLM2-135M's shortest step of 24
TOKENS_A_LAYOUT = 4  # of a longer step, which so becomes an eighth longer

_read_version = attrgetter("_version")


def group_rows(slots_N: torch.Tensor) -> list[Group]:
    """Return the rows of each adapter slot; -1 (no adapter) is in no group."""
    slots = slots_N.unique().tolist()
    if len(slots) == 1:
        return [] if slots[0] < 0 else [(slots[0], None)]
    return [(slot, (slots_N == slot).nonzero().flatten()) for slot in slots if slot >= 0]


def find_others(slots_N: torch.Tensor, groups: list[Group]) -> torch.Tensor | None:
    """Return where a row is not the slot's, [N, S], of so many slots as joint products pay for.

    None where they do not pay, or all rows are of one slot.
    """
    if not groups or (len(groups) == 1 and groups[0][1] is None):
        return None
    slots_S = torch.arange(JOINT_ROWS // max(1, len(slots_N)))
    return slots_N[:, None] != slots_S if len(slots_S) else None


class Product:
    """A matrix that many are multiplied by, laid out for that once."""

    def __init__(self, weight_IO: torch.Tensor) -> None:
        """Lay the matrix out; what is written into it later is not seen."""
        self.num_outputs = weight_IO.shape[1]
        self._weight_IO = self._handle = None
        if ops._supports_onednn:
            self._owner = ops.create_onednn_mm(weight_IO, FEW_ROWS)  # keeps a kernel for each number of rows
            self._handle = self._owner.handler_tensor
        else:
            self._weight_IO = weight_IO.clone()

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        """Return x, which is contiguous, times the matrix."""
        if self._weight_IO is not None:
            return torch.mm(x_NI, self._weight_IO)
        out_NO = x_NI.new_empty(len(x_NI), self.num_outputs)
        torch.ops._C.onednn_mm(out_NO, x_NI, None, self._handle)
        return out_NO


class Pair(NamedTuple):
    """The factors of one adapter, or of several, one behind the other: [I, R] and [R, O]."""

    first: Product
    second: Product
    num_slots: int


class Allowance:
    """How many pairs of products may still be laid out in this step of the engine, by all layers together.

    All requests wait for a step, and to lay out all products of an adapter takes as long as several short ones. What is
    not laid out yet is multiplied as it is.
    """

    def __init__(self) -> None:
        """Allow none before the first step."""
        self._left = 0

    def renew(self, num_tokens: int) -> None:
        """Begin a step of so many tokens."""
        self._left = max(LAYOUTS_A_STEP, num_tokens // TOKENS_A_LAYOUT)

    def take(self) -> bool:
        """Return whether one more may be laid out."""
        self._left -= 1
        return self._left >= 0


class LayerFactors:
    """What each slot adds to one layer, as products; a slot's are made again when it holds other values.

    vLLM writes them into a tensor of all slots, which tells that it was written into, not where: so what a slot held is
    kept and compared.
    """

    def __init__(
        self, a_stacked: Sequence[torch.Tensor], b_stacked: Sequence[torch.Tensor], allowance: Allowance
    ) -> None:
        """Take vLLM's tensors of each slice: [S, 1, rank, I] and [S, 1, outputs, rank]."""
        self.num_outputs = sum(b_SOR.shape[2] for b_SOR in b_stacked)
        self._a, self._b = a_stacked, b_stacked  # held, so that no other tensors get their identity
        self._tensors = (*a_stacked, *b_stacked)
        self._allowance = allowance
        self._versions: tuple[int, ...] = ()
        self._held: dict[int, Factors] = {}  # by each slot, when it was last looked at
        self._used: dict[int, Factors] = {}  # of it, what is not padding
        self._pairs: dict[int, Pair] = {}
        self._joint: Pair | None = None

    def add(self, y_NO: torch.Tensor, x_NI: torch.Tensor, groups: list[Group], others_NS: torch.Tensor | None) -> None:
        """Add to y, in place, what the adapters of its rows make of x.

        Args:
            y_NO: outputs of the base's weights.
            x_NI: the layer's inputs.
            groups: the rows of each slot.
            others_NS: see `find_others`.
        """
        self._forget_old()
        joint = None if others_NS is None else self._find_joint()
        if others_NS is not None and joint is not None and joint.num_slots <= others_NS.shape[1]:
            hidden_NR = joint.first(x_NI)
            # Filled and not multiplied by zero, which would leave what is not a number.
            others_NS = others_NS[:, : joint.num_slots, None]
            hidden_NR.view(*others_NS.shape[:2], -1).masked_fill_(others_NS, 0)
            y_NO.add_(joint.second(hidden_NR))
            return
        for slot, rows in groups:
            if rows is None:
                self._add_slot(y_NO, x_NI, slot)
            else:
                picked_NO = y_NO.index_select(0, rows)
                self._add_slot(picked_NO, x_NI.index_select(0, rows), slot)
                y_NO.index_copy_(0, rows, picked_NO)

    def _add_slot(self, y_NO: torch.Tensor, x_NI: torch.Tensor, slot: int) -> None:
        """Add what one slot makes of x to y, in place."""
        first_RI, second_RO = self._find_factors(slot)
        if not len(first_RI):
            return
        if slot not in self._pairs and self._allowance.take():
            self._pairs[slot] = Pair(Product(first_RI.t()), Product(second_RO), 1)
        pair = self._pairs.get(slot)
        hidden_NR = pair.first(x_NI) if pair else torch.mm(x_NI, first_RI.t())
        if pair and (len(x_NI) <= FEW_ROWS or y_NO.dtype != hidden_NR.dtype):
            y_NO.add_(pair.second(hidden_NR))
        elif y_NO.dtype == hidden_NR.dtype:
            y_NO.addmm_(hidden_NR, second_RO)
        else:
            y_NO.add_(torch.mm(hidden_NR, second_RO))

    def _forget_old(self) -> None:
        versions = tuple(map(_read_version, self._tensors))
        if versions == self._versions:
            return
        self._versions = versions
        for slot, held in list(self._held.items()):
            if not all(map(_equal, held, self._read(slot))):
                del self._held[slot], self._used[slot]
                self._pairs.pop(slot, None)
                self._joint = None

    def _find_factors(self, slot: int) -> Factors:
        """Return a slot's factors without what is padding: an adapter's rank may be below that of the slots."""
        if slot not in self._used:
            first_RI, second_RO = self._held[slot] = self._read(slot)
            used = first_RI.any(1) | second_RO.any(1)
            self._used[slot] = self._held[slot] if used.all() else (first_RI[used], second_RO[used])
        return self._used[slot]

    def _read(self, slot: int) -> Factors:
        """Return what a slot holds now."""
        first_RI = torch.cat([a_SRI[slot, 0] for a_SRI in self._a])
        return first_RI, torch.block_diag(*(b_SOR[slot, 0].t() for b_SOR in self._b))

    def _find_joint(self) -> Pair | None:
        """Return the factors of all slots up to the last one that holds any, each of the same rank; None: not yet."""
        if self._joint is None and self._allowance.take():
            slots = [self._find_factors(slot) for slot in range(len(self._tensors[0]))]
            num_slots = max((slot + 1 for slot, (first_RI, _) in enumerate(slots) if len(first_RI)), default=1)
            rank = max(1, *(len(first_RI) for first_RI, _ in slots))
            first_RI = torch.cat([_pad(first_RI, rank) for first_RI, _ in slots[:num_slots]])
            second_RO = torch.cat([_pad(second_RO, rank) for _, second_RO in slots[:num_slots]])
            if not second_RO.isfinite().all():  # by zero it would not be nothing: each adapter alone then
                num_slots = JOINT_ROWS + 1
            self._joint = Pair(Product(first_RI.t()), Product(second_RO), num_slots)
        return self._joint


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two contiguous tensors of one shape hold the same bits, ten times as fast as torch.equal."""
    if one.nbytes % 8:
        return torch.equal(one, other)
    return torch.equal(one.flatten().view(torch.int64), other.flatten().view(torch.int64))


def _pad(factor: torch.Tensor, rank: int) -> torch.Tensor:
    return torch.nn.functional.pad(factor, (0, 0, 0, rank - len(factor)))
