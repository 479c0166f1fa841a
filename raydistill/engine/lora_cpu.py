"""The grouped LoRA path on CPU: rows of a batch grouped by adapter, two small matrix products for each group.

vLLM's own CPU path copies a whole adapter, in float32, once per token, and applies the *last* slot to rows
that asked for no adapter. Here a batch of one adapter is not gathered at all, and rows without an adapter
are in no group, so nothing is added to them. Registered through the entry point `vllm.general_plugins`.

Axes: N tokens of the batch, I inputs, O outputs, R rank, S adapter slots.
"""

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, torch.Tensor | None]  # adapter slot; its rows, or None for all of them


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


def _add_product(
    y_NO: torch.Tensor, x_NI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, rows: torch.Tensor | None
) -> None:
    """Add x a^T b^T to the given rows of y, in place, in the dtype of the weights."""
    if rows is None:
        hidden = torch.mm(x_NI, a_RI.t())
        y_NO.addmm_(hidden, b_OR.t()) if y_NO.dtype == hidden.dtype else y_NO.add_(torch.mm(hidden, b_OR.t()))
        return
    update = torch.mm(torch.mm(x_NI.index_select(0, rows), a_RI.t()), b_OR.t())
    y_NO.index_add_(0, rows, update.to(y_NO.dtype))


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """PunicaWrapperCPU whose products run once per adapter instead of once per token."""

    _token_groups: list[Group]
    _sampler_groups: list[Group]

    def update_metadata(self, *args, **kwargs) -> None:  # noqa: ANN002, ANN003 - vLLM's signature, passed through
        """Group the batch's rows once per step; every layer then uses the same groups."""
        super().update_metadata(*args, **kwargs)
        self._token_groups = group_rows(self.token_lora_indices)
        self._sampler_groups = group_rows(self.sampler_indices)

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
        y_NO, x_NI = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        offset = 0
        for a_SRI, b_SOR, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            for slot, rows in self._token_groups:
                b_OR = b_SOR[slot, 0] if scale == 1 else b_SOR[slot, 0] * scale
                _add_product(y_NO[:, offset : offset + size], x_NI, a_SRI[slot, 0], b_OR, rows)
            offset += size

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
            _add_product(y_NO[:, :width], x_NI, lora_a_stacked[slot, 0], lora_b_stacked[slot, 0] * scale, rows)

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
