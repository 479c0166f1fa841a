"""A random LoRA adapter on the tiny model, saved by PEFT itself, and the draft of a version that publishes it."""

from pathlib import Path
from typing import Any

from raydistill.core.models import model_revision
from raydistill.core.records import ProbePoint, Version
from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest


def make_tiny_adapter(model_dir: str, folder: str | Path, seed: int = 0, rank: int = 4, scale: float = 0.1) -> str:
    """Save a rank-`rank` adapter of all linear layers, both factors normal with standard deviation `scale`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    adapted.save_pretrained(str(folder), safe_serialization=True)
    return str(folder)


def make_draft(model_dir: str, name: str = "triage", rank: int = 4, **changes: Any) -> Version:
    """Return a draft for `publish` that fits `make_tiny_adapter` on the tiny model."""
    tokenizer = load_tokenizer(model_dir)
    fields: dict[str, Any] = {
        "name": name,
        "number": 0,
        "base_model": model_dir,
        "base_revision": model_revision(model_dir),
        "tokenizer": tokenizer_digest(tokenizer),
        "renderer": "chat",
        "template_digest": get_renderer("chat", tokenizer).template_digest,
        "lora": {"rank": rank, "alpha": rank, "targets": "all-linear", "modules": 14},
        "files": [],
        "dataset_fingerprint": "f" * 32,
        "prompt_digest": "p" * 32,
        "metrics": {},
        "probe": [ProbePoint([1, 2, 3], 4, -9.0, -1.0)],
        "verifiable": True,
    }
    return Version(**{**fields, **changes})
