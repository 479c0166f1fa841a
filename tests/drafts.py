"""What `publish` takes: the draft of a version, of no real model or of the tiny one, and an adapter's bare files."""

from pathlib import Path
from typing import Any

from raydistill.core.models import model_revision
from raydistill.core.records import ProbePoint, Version
from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest


def make_draft(**changes: Any) -> Version:
    """Return a draft whose model and tokenizer are mere letters."""
    fields: dict[str, Any] = {
        "name": "triage",
        "number": 0,
        "base_model": "m",
        "base_revision": "r",
        "tokenizer": "t",
        "renderer": "chat",
        "template_digest": "d",
        "lora": {"rank": 4, "alpha": 4, "targets": "all-linear", "modules": 14},
        "files": [],
        "dataset_fingerprint": "f" * 32,
        "prompt_digest": "p" * 32,
        "metrics": {"train/loss_nats": 0.5},
        "probe": [ProbePoint([1, 2, 3], 4, -9.0, -1.0)],
        "verifiable": True,
    }
    return Version(**{**fields, **changes})


def make_tiny_draft(model_dir: str, **changes: Any) -> Version:
    """Return a draft that fits `make_tiny_adapter` on the tiny model."""
    tokenizer = load_tokenizer(model_dir)
    facts: dict[str, Any] = {
        "base_model": model_dir,
        "base_revision": model_revision(model_dir),
        "tokenizer": tokenizer_digest(tokenizer),
        "template_digest": get_renderer("chat", tokenizer).template_digest,
    }
    return make_draft(**{**facts, **changes})


def write_bare_adapter(folder: Path, weights: bytes) -> str:
    """Write the two files of an adapter, the weights as any bytes, and return the folder."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 4}')
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return str(folder)
