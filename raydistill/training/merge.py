"""A whole model with an adapter merged in, for servers without LoRA: plain files of transformers."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def merge_adapter(model_dir: str, adapter_dir: str, out_dir: str) -> None:
    """Write the base with the adapter added to its weights, in the base's dtype, with its tokenizer.

    The sum is made in float32 and rounded once, so a bfloat16 model moves by at most its last bit.

    Args:
        model_dir: local folder of the base.
        adapter_dir: local folder of the adapter in PEFT's format.
        out_dir: local folder, made where it is missing.
    """
    out = Path(out_dir)
    dtype = AutoConfig.from_pretrained(model_dir).dtype or torch.float32
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, adapter_dir).merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    merged.to(dtype).save_pretrained(out)
    for file in Path(model_dir).iterdir():  # the tokenizer's files as they are: writing them anew may change them
        if file.is_file() and not file.name.endswith(WEIGHTS) and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
