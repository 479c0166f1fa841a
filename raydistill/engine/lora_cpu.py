"""The grouped LoRA path on CPU: two small matrix products for each group of rows with the same adapter.

vLLM's own CPU path copies a whole adapter, in float32, once per token, and applies the *last* slot to rows
that asked for no adapter. Here rows without an adapter are in no group, so nothing is added to them. Registered
through the entry point `vllm.general_plugins`. Axes are those of raydistill.engine.lora_products.
"""

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from raydistill.engine.lora_products import Allowance, Group, LayerFactors, find_others, group_rows


def register() -> None:
    """Make vLLM's CPU platform use the grouped path; other platforms are left alone. May run more than once."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        name = f"{GroupedPunicaWrapper.__module__}.{GroupedPunicaWrapper.__qualname__}"
        setattr(type(current_platform), "get_punica_wrapper", classmethod(lambda _cls: name))  # noqa: B010


def _add(y_NO: torch.Tensor, update_NO: torch.Tensor, rows: torch.Tensor | None) -> None:
    y_NO.add_(update_NO) if rows is None else y_NO.index_add_(0, rows, update_NO.to(y_NO.dtype))


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """PunicaWrapperCPU whose products run once per adapter, or once, instead of once per token."""

    _tokens: list[Group]
    _samples: list[Group]
    _others_NS: torch.Tensor | None

    def __init__(self, *args, **kwargs) -> None:  # noqa: ANN002, ANN003 - vLLM's signature, passed through
        """Begin without layers."""
        super().__init__(*args, **kwargs)
        self._layers: dict[int, LayerFactors] = {}  # by the identity of the layer's first tensor
        self._allowance = Allowance()

    def update_metadata(self, *args, **kwargs) -> None:  # noqa: ANN002, ANN003 - vLLM's signature, passed through
        """Group the batch's rows once per step; every layer then uses the same groups."""
        super().update_metadata(*args, **kwargs)
        self._take_slots(self.token_lora_indices, self.sampler_indices)

    def _take_slots(self, tokens_N: torch.Tensor, samples_N: torch.Tensor) -> None:
        self._allowance.renew(len(tokens_N))
        self._tokens, self._samples = group_rows(tokens_N), group_rows(samples_N)
        self._others_NS = find_others(tokens_N, self._tokens)

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
        if not self._tokens:
            return
        layer = self._layers.get(id(lora_a_stacked[0]))
        if layer is None:
            layer = LayerFactors(lora_a_stacked, lora_b_stacked, self._allowance)
            self._layers[id(lora_a_stacked[0])] = layer
        y_NO, x_NI = y.view(-1, y.shape[-1])[:, : layer.num_outputs], x.view(-1, x.shape[-1])
        if scale != 1:
            x_NI = x_NI * scale
        layer.add(y_NO, x_NI.to(lora_a_stacked[0].dtype), self._tokens, self._others_NS)

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
        for slot, rows in self._samples:
            picked_NI = x_NI if rows is None else x_NI.index_select(0, rows)
            hidden_NR = torch.mm(picked_NI, lora_a_stacked[slot, 0].t())
            _add(y_NO[:, :width], torch.mm(hidden_NR, lora_b_stacked[slot, 0].t()).mul_(scale), rows)

    def add_shrink(self, y, x, lora_a_stacked, scale: float, **kwargs: object) -> None:  # noqa: ANN001
        """Put x A^T of every slice into the buffers y; rows without an adapter become zero."""
        x_NI = x.view(-1, x.shape[-1])
        for y_slice, a_SRI in zip(y, lora_a_stacked, strict=True):
            y_NR = y_slice.view(-1, y_slice.shape[-1])
            y_NR.zero_()
            for slot, rows in self._tokens:
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
            for slot, rows in self._tokens:
                b_OR = b_SOR[slot, 0]
                x_NR = x_slice.view(-1, x_slice.shape[-1]).to(b_OR.dtype)
                picked = x_NR if rows is None else x_NR.index_select(0, rows)
                _add(columns_NO, torch.mm(picked, b_OR.t()), rows)
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
