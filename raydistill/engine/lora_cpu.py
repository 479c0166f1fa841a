"""The grouped LoRA path on CPU: two small matrix products for each group of rows with the same adapter.

vLLM's own CPU path copies a whole adapter, in float32, once per token, and applies the *last* slot to rows
that asked for no adapter. Here rows without an adapter are in no group, so nothing is added to them. Registered
through the entry point `vllm.general_plugins`.

What costs is not the arithmetic but the number of operations: the factors of all slices of a layer (q, k and v, say)
and of all slots lie in two matrices, so a layer needs two products where all rows have one adapter, and, in a batch of
a few rows, also where they have several. For SmolLM2-135M, rank 32, 32 rows, two threads, a block takes 0.28 instead
of 0.41 ms with one adapter, and 0.7 instead of 2.2 with four.

Axes: N tokens of the batch, I inputs, O outputs of all slices, R rank, summed over the slices, S adapter slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, torch.Tensor | None]  # adapter slot; its rows, or None for all of them
MASKED_TOKENS = 128  # up to so many, all adapters' products at once are faster than each adapter's with its own rows


def register() -> None:
    """Make vLLM's CPU platform use the grouped path; other platforms are left alone. May run more than once."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        name = f"{GroupedPunicaWrapper.__module__}.{GroupedPunicaWrapper.__qualname__}"
        setattr(type(current_platform), "get_punica_wrapper", classmethod(lambda _cls: name))  # noqa: B010


def group_rows(slots_N: torch.Tensor) -> list[Group]:
    """Return the rows of each adapter slot; -1 (no adapter) is in no group."""
    slots = slots_N.unique().tolist()
    if len(slots) == 1:
        return [] if slots[0] < 0 else [(slots[0], None)]
    return [(slot, (slots_N == slot).nonzero().flatten()) for slot in slots if slot >= 0]


@dataclass(frozen=True)
class Factors:
    """The factors of all slices and slots of one layer.

    vLLM's own tensors, one a slice, are made views of these, so that what it writes into them is here too.

    Attributes:
        first_SRI: of all slices, one below the other.
        second_SRO: each slice's in its own rows and columns, zeros elsewhere.
    """

    first_SRI: torch.Tensor
    second_SRO: torch.Tensor


def pack_factors(a_stacked: Sequence[torch.Tensor], b_stacked: Sequence[torch.Tensor]) -> Factors:
    """Move a layer's factors into two tensors, of which the given ones are views from now on.

    Args:
        a_stacked: [S, 1, rank, I] of each slice.
        b_stacked: [S, 1, outputs, rank] of each slice.
    """
    slots, ranks, sizes = len(a_stacked[0]), [a.shape[2] for a in a_stacked], [b.shape[2] for b in b_stacked]
    first_SRI = a_stacked[0].new_zeros(slots, sum(ranks), a_stacked[0].shape[3])
    second_SRO = b_stacked[0].new_zeros(slots, sum(ranks), sum(sizes))
    row = column = 0
    for a, b, rank, size in zip(a_stacked, b_stacked, ranks, sizes, strict=True):
        _move(a, first_SRI[:, row : row + rank].unsqueeze(1))
        _move(b, second_SRO[:, row : row + rank, column : column + size].transpose(1, 2).unsqueeze(1))
        row, column = row + rank, column + size
    return Factors(first_SRI, second_SRO)


def _move(tensor: torch.Tensor, place: torch.Tensor) -> None:
    """Copy a tensor into a place and let it be a view of that, with its memory given back."""
    place.copy_(tensor)
    tensor.set_(place.untyped_storage(), place.storage_offset(), place.shape, place.stride())  # pyright: ignore[reportArgumentType]


def _add_product(
    y_NO: torch.Tensor, x_NI: torch.Tensor, first_RI: torch.Tensor, second_RO: torch.Tensor, rows: torch.Tensor | None
) -> None:
    """Add x A^T B^T to the given rows of y, in place, in the dtype of the weights."""
    if rows is None:
        _add(y_NO, torch.mm(x_NI, first_RI.t()), second_RO)
        return
    update = torch.mm(torch.mm(x_NI.index_select(0, rows), first_RI.t()), second_RO)
    y_NO.index_add_(0, rows, update.to(y_NO.dtype))


def _add(y_NO: torch.Tensor, hidden_NR: torch.Tensor, second_RO: torch.Tensor) -> None:
    if y_NO.dtype == hidden_NR.dtype:
        y_NO.addmm_(hidden_NR, second_RO)
    else:
        y_NO.add_(torch.mm(hidden_NR, second_RO))


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """PunicaWrapperCPU whose products run once per adapter, or once, instead of once per token."""

    _token_groups: list[Group]
    _sampler_groups: list[Group]
    _others_NS: torch.Tensor | None  # where a row is not the slot's, of the slots up to the last one in use

    def __init__(self, *args, **kwargs) -> None:  # noqa: ANN002, ANN003 - vLLM's signature, passed through
        """Begin without layers."""
        super().__init__(*args, **kwargs)
        self._factors = WeakTensorKeyDictionary()  # by the layer's first tensor

    def update_metadata(self, *args, **kwargs) -> None:  # noqa: ANN002, ANN003 - vLLM's signature, passed through
        """Group the batch's rows once per step; every layer then uses the same groups."""
        super().update_metadata(*args, **kwargs)
        self._take_slots(self.token_lora_indices, self.sampler_indices)

    def _take_slots(self, tokens_N: torch.Tensor, samples_N: torch.Tensor) -> None:
        self._token_groups, self._sampler_groups = group_rows(tokens_N), group_rows(samples_N)
        self._others_NS = None
        if len(self._token_groups) > 1 and len(tokens_N) <= MASKED_TOKENS:
            slots_S = torch.arange(self._token_groups[-1][0] + 1, device=tokens_N.device)
            self._others_NS = tokens_N[:, None] != slots_S

    def add_lora_linear(  # noqa: PLR0913 - vLLM's signature
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: object,
    ) -> None:
        """Add every slice's x A^T B^T to y, in place; vLLM has already put the scaling into B (scale is 1)."""
        if not self._token_groups:
            return
        factors = self._factors.get(lora_a_stacked[0])
        if factors is None:
            factors = self._factors[lora_a_stacked[0]] = pack_factors(lora_a_stacked, lora_b_stacked)
        y_NO, x_NI = y.view(-1, y.shape[-1])[:, : sum(output_slices)], x.view(-1, x.shape[-1])
        if self._others_NS is not None:
            used = self._others_NS.shape[1]
            hidden_NR = torch.mm(x_NI, factors.first_SRI[:used].flatten(0, 1).t())
            # Filled and not multiplied by zero, which would leave what is not a number.
            hidden_NR.view(*self._others_NS.shape, -1).masked_fill_(self._others_NS[:, :, None], 0)
            second_RO = factors.second_SRO[:used].flatten(0, 1)
            _add(y_NO, hidden_NR, second_RO if scale == 1 else second_RO * scale)
            return
        for slot, rows in self._token_groups:
            second_RO = factors.second_SRO[slot]
            _add_product(y_NO, x_NI, factors.first_SRI[slot], second_RO if scale == 1 else second_RO * scale, rows)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: object,
    ) -> None:
        """Add x A^T B^T of an adapted output head to the logits, in place."""
        y_NO, x_NI = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        width = lora_b_stacked.shape[-2]
        for slot, rows in self._sampler_groups:
            second_RO = lora_b_stacked[slot, 0].t() * scale
            _add_product(y_NO[:, :width], x_NI, lora_a_stacked[slot, 0], second_RO, rows)

    def add_shrink(self, y, x, lora_a_stacked, scale: float, **kwargs: object) -> None:  # noqa: ANN001
        """Put x A^T of every slice into the buffers y; rows without an adapter become zero."""
        x_NI = x.view(-1, x.shape[-1])
        for y_slice, a_SRI in zip(y, lora_a_stacked, strict=True):
            y_NR = y_slice.view(-1, y_slice.shape[-1])
            y_NR.zero_()
            for slot, rows in self._token_groups:
                a_RI = a_SRI[slot, 0]
                if rows is None:
                    y_NR.copy_(torch.mm(x_NI, a_RI.t()) * scale)
                else:
                    y_NR.index_copy_(0, rows, (torch.mm(x_NI.index_select(0, rows), a_RI.t()) * scale).to(y_NR.dtype))

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: object,
    ) -> None:
        """Add (or, with add_inputs false, put) buffer B^T of every slice into its columns of y, in place."""
        y_NO = y.view(-1, y.shape[-1])
        offset = offset_start
        for x_slice, b_SOR, size in zip(x, lora_b_stacked, output_slices, strict=True):
            columns_NO = y_NO[:, offset : offset + size]
            if not add_inputs:
                columns_NO.zero_()
            for slot, rows in self._token_groups:
                b_OR = b_SOR[slot, 0]
                x_NR = x_slice.view(-1, x_slice.shape[-1]).to(b_OR.dtype)
                picked = x_NR if rows is None else x_NR.index_select(0, rows)
                update = torch.mm(picked, b_OR.t()).to(y.dtype)
                columns_NO.add_(update) if rows is None else columns_NO.index_add_(0, rows, update)
            offset += size

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: object,
    ) -> None:
        """Add the second half of an adapted embedding, in place."""
        self.add_expand(y, (x,), (lora_b_stacked,), (lora_b_stacked.shape[-2],), add_inputs=add_inputs)
