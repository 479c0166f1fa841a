"""A random LoRA adapter on the tiny model, saved by PEFT itself."""

from pathlib import Path


def make_tiny_adapter(
    model_dir: str, folder: str | Path, seed: int = 0, rank: int = 4, alpha: int | None = None, scale: float = 0.1
) -> str:
    """Save an adapter of all linear layers, both factors normal with standard deviation `scale`.

    Args:
        model_dir: the tiny model.
        folder: where.
        seed: of the weights.
        rank: of each layer's factors.
        alpha: by default the rank, so that the product of the factors is not scaled.
        scale: 0.0 gives an adapter that does nothing.

    Returns:
        The folder, as text.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    alpha = rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    adapted.save_pretrained(str(folder), safe_serialization=True)
    return str(folder)
