"""Load a causal language model with an adapter, for scoring only."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raydistill.core.errors import NotFoundError


def load_model(model_dir: str, adapter_dir: str | Path | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """Return a local model in evaluation mode, the adapter (PEFT format, safetensors) switched on where one is given.

    Args:
        model_dir: local folder of the base model.
        adapter_dir: local folder of the adapter; None for the base model alone.
        dtype: of base and adapter; float32 is what reports are made with.

    Raises:
        NotFoundError: there is no such model or adapter.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise NotFoundError(f"{model_dir} holds no causal language model that can be read ({error}).") from error
    if adapter_dir is not None:
        if not (Path(adapter_dir) / "adapter_model.safetensors").is_file():
            raise NotFoundError(f"{adapter_dir} holds no adapter_model.safetensors.")
        model = PeftModel.from_pretrained(model, str(adapter_dir), use_safetensors=True).to(dtype)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def adapter_switch(model: Any, adapted: bool) -> Iterator[None]:
    """Run with the adapter on, or off where `adapted` is False; a model without one is left as it is."""
    if adapted or not hasattr(model, "disable_adapter"):
        yield
        return
    with model.disable_adapter():
        yield
