"""The shape of a student, known from its config alone: no weight is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from raydistill.core.config import nearest
from raydistill.core.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """What a student is made of.

    Attributes:
        num_parameters: of the base.
        linear: last name, inputs and outputs of every linear layer but the head.
    """

    num_parameters: int
    linear: tuple[tuple[str, int, int], ...]

    def count_lora(self, rank: int, targets: Sequence[str] | None) -> int:
        """Return the parameters of an adapter on these layers, None for all."""
        return sum(rank * (ins + outs) for name, ins, outs in self.linear if targets is None or name in targets)


def read_shape(model_dir: str) -> Shape:
    """Return a model's shape."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir))
    head = model.get_output_embeddings()
    linear = [
        (name.rpartition(".")[2], module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    return Shape(sum(parameter.numel() for parameter in model.parameters()), tuple(linear))


def check_targets(targets: Sequence[str] | None, shape: Shape) -> None:
    """Refuse a student without linear layers, and names that are none of its.

    Raises:
        ConfigError: names the unknown and the known ones.
    """
    known = sorted({name for name, _, _ in shape.linear})
    if not known:
        raise ConfigError(
            "student_model: this model has no linear layer but its head that could carry an adapter: GPT-2 and its "
            "like have layers of another kind (Conv1D). Take a model of another family."
        )
    unknown = [name for name in targets or [] if name not in known]
    if unknown:
        hints = "".join(nearest(name, known) for name in unknown[:1])
        raise ConfigError(
            f"lora_targets: the student has no linear layer {', '.join(unknown)}{hints}; it has {', '.join(known)}."
        )
