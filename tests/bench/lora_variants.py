"""Faster LoRA layers that were tried and not taken, for bench_train to measure beside what is.

`bfloat16` casts the adapters once, not in every pass, and AdamW's state with them; `fused` is one autograd function a
layer, with both products added in place; `compiled` gives every decoder layer to torch.compile. docs/training.md has
what they came to.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer

VARIANTS = ("bfloat16", "fused", "compiled")


class FusedLora(torch.autograd.Function):
    """x W' + scale (x A') B' for a frozen W without bias."""

    @staticmethod
    def forward(ctx, x, weight, a, b, scale):
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        rows = x.to(weight.dtype).flatten(0, -2)
        inner = rows @ a.T
        output = (rows @ weight.T).addmm_(inner, b.T, alpha=scale)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, *gradients):
        rows, inner, weight, a, b = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2).to(weight.dtype)
        outer = gradient @ b
        to_x = (gradient @ weight).addmm_(outer, a, alpha=ctx.scale)
        to_a, to_b = ctx.scale * (outer.T @ rows), ctx.scale * (gradient.T @ inner)
        return to_x.view(ctx.shape), None, to_a.float(), to_b.float(), None


def apply_variant(model: Any, variant: str) -> None:
    """Change a student in place, before DeepSpeed's engine is made."""
    if variant == "compiled":
        for layer in model.get_base_model().model.layers:
            layer.compile(dynamic=True)
    for module in [module for module in model.modules() if isinstance(module, LoraLayer)]:
        if variant == "bfloat16":
            module.lora_A.bfloat16()
            module.lora_B.bfloat16()
        elif variant == "fused":
            module.forward = _fuse(module)


def _fuse(module: Any) -> Any:
    weight, a, b = module.base_layer.weight, module.lora_A["default"].weight, module.lora_B["default"].weight
    scale = module.scaling["default"]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight) if module.disable_adapters else FusedLora.apply(x, weight, a, b, scale)

    return forward
