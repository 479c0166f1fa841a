"""An adapter merged into the weights of a running engine, in place: the part that runs in vLLM's workers.

The weights are always made anew from the base model's files, so nothing of the adapter before is left in them.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_PREFIX = "base_model.model."  # PEFT's, before the base model's own names

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


class MergingWorker:
    """What vLLM adds to its worker's class."""

    model_runner: Any  # the worker's own

    def merge_adapter(self, folder: str | None) -> None:
        """Load the base model's weights, with an adapter added to them; the engine must not be computing.

        Args:
            folder: of the adapter, in PEFT's format; None for the base alone.

        Raises:
            ValueError: the base model's files lack what it adapts, and some weights may be changed already.
        """
        from vllm.model_executor.model_loader import get_model_loader

        runner = self.model_runner
        loader: Any = get_model_loader(runner.load_config)
        base = loader.get_all_weights(runner.model_config, runner.get_model())
        runner.reload_weights(weights_iterator=add_adapter(base, folder) if folder else base)


def add_adapter(weights: Iterable[tuple[str, torch.Tensor]], folder: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a base model's weights, those that the adapter adapts with scale * B @ A added, in float32.

    The engine rounds the sum once, to its own dtype.

    Args:
        weights: the base model's, each with its name in the checkpoint.
        folder: of a plain LoRA adapter in PEFT's format.

    Raises:
        ValueError: a module that it adapts was not among them; at the end.
    """
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    factors = read_factors(Path(folder) / "adapter_model.safetensors")
    for name, weight in weights:
        pair = factors.pop(name.removesuffix(".weight"), None)
        if pair is None:
            yield name, weight
        else:
            first, second = pair
            yield name, torch.addmm(weight.float(), second.float(), first.float(), alpha=scale)
    if factors:
        raise ValueError(f"the base model's files have no weight of {', '.join(sorted(factors)[:3])}")


def read_factors(path: Path) -> Factors:
    """Return (A, B) of each module, of shapes [rank, in] and [out, rank], by the base model's name of it."""
    with safe_open(path, framework="pt") as file:
        modules = {name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in file.keys()}  # noqa: SIM118
        part = "{}{}.lora_{}.weight".format
        return {
            module: (file.get_tensor(part(_PREFIX, module, "A")), file.get_tensor(part(_PREFIX, module, "B")))
            for module in modules
        }
