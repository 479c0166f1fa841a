"""Check a fetched version against the base model it is to be loaded on, before any engine sees it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.core.errors import VerificationError
from raydistill.core.models import model_revision
from raydistill.core.records import Version
from raydistill.registry.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_header,
    read_tensors,
)
from raydistill.renderers import get_renderer, load_tokenizer

MAX_WEIGHT = 100.0  # far above training (0.13 in the tiny model's adapters, issue 2), far below what overflows
MAX_SCALE = 100.0  # alpha / rank; usual is 0.5 to 4
_PREFIX = "base_model.model."
_PLAIN: dict[str, Any] = {
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "modules_to_save": None,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def check_version(version: Version, folder: str | Path, model_dir: str, max_rank: int) -> None:
    """Return silently if the version may be loaded on the base model; digests are `fetch_version`'s part.

    Args:
        version: as published.
        folder: local folder with the version's two files.
        model_dir: local folder of the base model that is being served.
        max_rank: the largest LoRA rank that the engine was started with.

    Raises:
        VerificationError: with the first reason found.
    """
    where = f"{version.name}/{version.label}"
    revision = model_revision(model_dir)
    if version.base_revision != revision:
        raise VerificationError(
            f"{where} was trained on {version.base_model} (revision {version.base_revision}), but {model_dir} is "
            f"revision {revision}. Serve the base model it was trained on, or train again on this one."
        )
    template = get_renderer(version.renderer, load_tokenizer(model_dir)).template_digest
    if version.template_digest != template:
        raise VerificationError(
            f"{where} was trained with template {version.template_digest}, but {model_dir} renders with {template}: "
            f"the served tokens would be others. Put the model's chat template back, or train again."
        )
    rank = _check_config(version, Path(folder) / CONFIG_FILE, max_rank, where)
    check_weights(Path(folder) / WEIGHTS_FILE, where)
    _check_modules(version, Path(folder) / WEIGHTS_FILE, model_dir, rank)


def check_weights(path: Path, where: str) -> None:
    """Refuse an adapter with a value that is not finite or larger than MAX_WEIGHT: it would poison the engine.

    Raises:
        VerificationError: with the tensor and its value.
    """
    for name, values in read_tensors(path):
        largest = float(np.max(np.abs(values))) if values.size else 0.0
        if not largest <= MAX_WEIGHT:  # false for NaN too
            raise VerificationError(
                f"{where}: {name} holds a weight of {largest}; allowed are finite ones up to {MAX_WEIGHT:g}. "
                f"Training diverged or the file is damaged: train again with a smaller learning_rate."
            )


def _check_config(version: Version, path: Path, max_rank: int, where: str) -> int:
    try:
        config = json.loads(path.read_bytes())
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VerificationError(f"{where}: {CONFIG_FILE} is no LoRA configuration ({error!r}).") from error
    if config.get("peft_type") != "LORA":
        raise VerificationError(f"{where}: peft_type is {config.get('peft_type')!r}; only LORA is served.")
    for key, plain in _PLAIN.items():
        if (config.get(key) or None) != (plain or None):
            raise VerificationError(f"{where}: {CONFIG_FILE} has {key}={config[key]!r}; only plain LoRA is served.")
    if rank != version.lora["rank"] or alpha != float(version.lora["alpha"]):
        raise VerificationError(
            f"{where}: {CONFIG_FILE} has rank {rank} and alpha {alpha:g}, but the version was published with rank "
            f"{version.lora['rank']} and alpha {version.lora['alpha']}."
        )
    if not 1 <= rank <= max_rank:
        raise VerificationError(
            f"{where}: rank {rank} does not fit; the engine was started for ranks up to {max_rank}. "
            f"Start it with max_lora_rank={rank} or more."
        )
    if not 0 < alpha / rank <= MAX_SCALE:
        raise VerificationError(f"{where}: alpha/rank is {alpha / rank:g}; allowed is above 0 up to {MAX_SCALE:g}.")
    return rank


def _check_modules(version: Version, path: Path, model_dir: str, rank: int) -> None:
    """Compare the adapted modules and their shapes with the base model's own tensors."""
    where = f"{version.name}/{version.label}"
    base = _base_shapes(model_dir)
    shapes = {name: tuple(entry["shape"]) for name, entry in read_header(path).items()}
    modules = {name.rsplit(".lora_", 1)[0] for name in shapes}
    if len(modules) != version.lora["modules"]:
        raise VerificationError(
            f"{where}: the file adapts {len(modules)} modules, but the version was published with "
            f"{version.lora['modules']}. The engine would answer with the base model where one is missing."
        )
    for module in sorted(modules):
        weight = base.get(module.removeprefix(_PREFIX) + ".weight")
        if weight is None or len(weight) != 2:
            raise VerificationError(f"{where}: {module} is no linear layer of {version.base_model}.")
        for part, expected in (("A", (rank, weight[1])), ("B", (weight[0], rank))):
            found = shapes.pop(f"{module}.lora_{part}.weight", None)
            if found != expected:
                raise VerificationError(f"{where}: {module}.lora_{part} has shape {found}, not {expected}.")
    if shapes:
        raise VerificationError(f"{where}: tensors that are no LoRA factors: {', '.join(sorted(shapes)[:3])}.")


def _base_shapes(model_dir: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(model_dir).glob("*.safetensors")):
        shapes |= {name: tuple(entry["shape"]) for name, entry in read_header(path).items()}
    if not shapes:
        raise VerificationError(f"{model_dir} holds no .safetensors file, so no adapter can be compared with it.")
    if "model.embed_tokens.weight" in shapes:  # a tied head has no tensor of its own
        shapes.setdefault("lm_head.weight", shapes["model.embed_tokens.weight"])
    return shapes
