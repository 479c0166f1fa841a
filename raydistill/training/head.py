"""The student's head: the projection to the vocabulary, kept out of the model's pass.

A pass gives hidden states at the positions that predict a completion token; logits are made from them a chunk at a
time, so that those of a whole batch never exist (8 rows of 40 tokens of SmolLM2-135M would be 63 MB in float32, and
a loss needs several such tensors).

Axes: N positions, C of them in a chunk, H width of the model, V vocabulary.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Head:
    """From hidden states to logits and from gradients of logits back.

    Attributes:
        weight_VH: frozen.
        bias_V: frozen; None in most models.
        scale: logits are multiplied by it.
        cap: logits are bent to stay between -cap and cap; None in most models.
    """

    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden_CH: torch.Tensor) -> torch.Tensor:
        """Return float32 logits_CV; the product is made in the weight's dtype."""
        logits_CV = F.linear(hidden_CH.to(self.weight_VH.dtype), self.weight_VH, self.bias_V).float()
        if self.scale != 1.0:
            logits_CV = logits_CV * self.scale
        return logits_CV if self.cap is None else self.cap * torch.tanh(logits_CV / self.cap)

    def pull_back(self, gradient_CV: torch.Tensor, logits_CV: torch.Tensor) -> torch.Tensor:
        """Return the gradient of hidden_CH, in the weight's dtype; `gradient_CV` is used up."""
        if self.cap is not None:
            gradient_CV.mul_(1 - (logits_CV / self.cap) ** 2)
        if self.scale != 1.0:
            gradient_CV.mul_(self.scale)
        return gradient_CV.to(self.weight_VH.dtype) @ self.weight_VH


def bare_model(model: Any) -> Any:
    """Return the Hugging Face model inside a PeftModel, with or without DeepSpeed's engine around it."""
    return getattr(model, "module", model).get_base_model()


@contextlib.contextmanager
def open_head(model: Any) -> Iterator[Head]:
    """Give the head; under ZeRO-3 its weights are whole for as long as this is open, on all workers together."""
    base = bare_model(model)
    layer: nn.Linear = base.get_output_embeddings()
    with _gathered(list(layer.parameters())):
        bias = None if layer.bias is None else layer.bias.detach()
        yield Head(layer.weight.detach(), bias, *_read_shape(base))


def _gathered(weights: list[nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
    if not any(hasattr(weight, "ds_id") for weight in weights):  # ZeRO-3's mark
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights)


def _read_shape(base: Any) -> tuple[float, float | None]:
    """Return what a model does to its logits after the head, by the names that transformers' models have for it."""
    config = base.config.get_text_config()
    scale = float(getattr(base, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)


@contextlib.contextmanager
def headless(model: Any) -> Iterator[None]:
    """Let the model's passes give hidden states in the place of logits.

    They come out of the whole model, and not of a hook before the head, because ZeRO-3 begins its backward pass where
    the outermost module's output gets a gradient.
    """
    base = bare_model(model)
    config = base.config.get_text_config()
    places = [(base, "logit_scale", 1.0), (config, "logits_scaling", 1.0), (config, "final_logit_softcapping", None)]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places if hasattr(owner, name)]
    layer = base.get_output_embeddings()
    layer.forward = _give_back
    for owner, name, neutral in places:
        if hasattr(owner, name):
            setattr(owner, name, neutral)
    try:
        yield
    finally:
        del layer.forward
        for owner, name, value in before:
            setattr(owner, name, value)


def _give_back(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
