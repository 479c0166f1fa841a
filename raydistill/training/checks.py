"""What is refused before any worker starts, and what is only advised against."""

import logging
from collections.abc import Sequence

from raydistill.core.errors import DatasetError
from raydistill.training.batches import EncodedRow, Plan
from raydistill.training.config import TrainConfig
from raydistill.training.shape import Shape

FEW_STEPS = 100  # below, LoRA is seldom trained enough

logger = logging.getLogger(__name__)


def check_rows(config: TrainConfig, rows: Sequence[EncodedRow]) -> None:
    """Refuse rows that cannot be trained on.

    Raises:
        DatasetError: fewer rows than one batch, or a row without prompt or response.
    """
    num_rows = sum(not row.is_generic for row in rows)
    if num_rows < config.batch_size:
        raise DatasetError(
            f"{config.data_file} leaves {num_rows} rows for training, fewer than one batch of {config.batch_size}. "
            "Create more examples or set a smaller batch_size."
        )
    empty = [row.id for row in rows if not row.prompt_tokens or not row.response_tokens]
    if empty:
        raise DatasetError(
            f"{config.data_file}: {len(empty)} rows have no prompt or no response, the first is {empty[0]}."
        )


def advise(config: TrainConfig, rows: Sequence[EncodedRow], plan: Plan, shape: Shape) -> None:
    """Warn of a run that can hardly learn what it is given: few steps, or an adapter smaller than what it must hold.

    Source: LoRA keeps up with full fine-tuning as long as its parameters outnumber the completion tokens (Schulman et
    al. 2025, LoRA Without Regret).
    """
    if plan.num_steps < FEW_STEPS:
        logger.warning(
            "%d steps are few: LoRA wants %d or more (more num_epochs or examples).", plan.num_steps, FEW_STEPS
        )
    num_parameters = shape.count_lora(config.lora_rank, config.lora_targets)
    num_tokens = sum(len(row.response_tokens) for row in rows)
    if num_parameters < num_tokens:
        rank = -(-num_tokens * config.lora_rank // num_parameters)
        logger.warning(
            "The adapter has %d parameters for %d completion tokens, fewer than one each: it may not hold them "
            "(lora_rank=%d would have as many).",
            num_parameters,
            num_tokens,
            rank,
        )
