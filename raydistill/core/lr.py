"""A LoRA learning rate from a model's width."""

import logging
from typing import Any

from raydistill.core.errors import ConfigError
from raydistill.core.models import fetch_model_config, find_key

logger = logging.getLogger(__name__)

_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}


def get_lr(model: str) -> float:
    """Return a learning rate for LoRA on a model, by its family and hidden size; reads config.json only.

    Args:
        model: a folder, `demo://NAME`, `s3://bucket/folder` or a hub id.

    Raises:
        NotFoundError: there is no such model.
        ConfigError: its config.json names no hidden size.

    Source: tinker-cookbook's fit, `5e-5 * 10 * (2000 / hidden_size) ** p`, p = 0.781 (Llama), 0.0775 (Qwen).
    """
    config = fetch_model_config(model)
    return 5e-5 * 10 * (2000 / _hidden_size(config, model)) ** _EXPONENTS[_family(config, model)]


def _hidden_size(config: dict[str, Any], model: str) -> int:
    size = find_key(config, "hidden_size")
    if not isinstance(size, int) or size <= 0:
        raise ConfigError(f"learning_rate: config.json of {model} names no hidden_size. Set learning_rate yourself.")
    return size


def _family(config: dict[str, Any], model: str) -> str:
    kind = str(config.get("model_type", "")).lower()
    for family in _EXPONENTS:
        if kind.startswith(family):
            return family
    logger.warning(
        "learning_rate: %s is of the family %r, for which there is no fit; the Llama fit is used. "
        "Set learning_rate if training is unstable.",
        model,
        kind or "unknown",
    )
    return "llama"
