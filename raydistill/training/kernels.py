"""Liger's kernels for the student's norms, gated layers and rotary positions: on GPUs, where they are installed.

Head and loss are ours, so Liger's own for these stay off. That it patches what it knows is not taken on trust: one
row's logits are compared before and after, because `check_packing` has only the patched model to compare with.
"""

import importlib.util
import logging
import sys
from typing import Any

import torch

from raydistill.training.batches import EncodedRow
from raydistill.training.head import bare_model
from raydistill.training.model import PACKING_TOLERANCE, plain_logits

PACKAGE = "liger_kernel"
_ABSENT = object()

logger = logging.getLogger(__name__)


@torch.no_grad()
def add_kernels(model: Any, row: EncodedRow, dtype: str, device: torch.device) -> bool:
    """Let Liger patch a student on a GPU, or take its patches back where logits change; all workers call it together.

    Returns:
        Whether the student has them now.
    """
    if device.type != "cuda" or importlib.util.find_spec(PACKAGE) is None:
        return False
    from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports] - of the extra `liger`
        _apply_liger_kernel_to_instance,
    )

    base = bare_model(model)
    expected = plain_logits(model, row.prompt_tokens, row.response_tokens, dtype)
    # It replaces functions of the family's module, and methods of single layers.
    places = [vars(sys.modules[type(base).__module__]), *(vars(module) for module in base.modules())]
    before = [dict(place) for place in places]
    _apply_liger_kernel_to_instance(model=base, cross_entropy=False, fused_linear_cross_entropy=False)
    changes = [
        (place, name, old.get(name, _ABSENT))
        for place, old in zip(places, before, strict=True)
        for name, value in place.items()
        if value is not old.get(name, _ABSENT)
    ]
    if not changes:
        logger.warning("Liger's kernels are installed, but it knows none for %s.", type(base).__name__)
        return False
    found = plain_logits(model, row.prompt_tokens, row.response_tokens, dtype)
    difference = (found - expected).abs().mean().item()
    if difference <= PACKING_TOLERANCE[dtype]:
        logger.info("Liger's kernels are in %s: its logits differ by %.3g.", type(base).__name__, difference)
        return True
    for place, name, value in changes:
        if value is _ABSENT:
            del place[name]
        else:
            place[name] = value
    logger.warning("Liger's kernels change the student's logits by %.3g: it trains without them.", difference)
    return False
