"""Check a fetched version against the base model it is to be loaded on, before any engine sees it."""

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from raydistill.core.errors import VerificationError
from raydistill.core.models import find_key, model_revision, read_model_config
from raydistill.core.records import Version
from raydistill.registry.files import CONFIG_FILE, WEIGHTS_FILE, read_header, read_tensors
from raydistill.registry.lora_config import LoraConfig, check_lora_config, read_lora_config
from raydistill.renderers import get_renderer, load_tokenizer
from raydistill.renderers.render import NAMES

MAX_WEIGHT = 100.0  # far above training (0.13 in the tiny model's adapters, issue 2), far below what overflows
HEAD = "lm_head"
PREFIX = "base_model.model."  # PEFT takes no tensor without it, and says nothing
_EMBEDDINGS = {"embed_tokens", "embed_in", "word_embeddings", "wte", "wpe"}  # matrices, but looked up, not multiplied


def check_version(version: Version, folder: str | Path, model_dir: str, max_rank: int, merges: bool = False) -> None:
    """Return silently if the version may be loaded on the base model; digests are `fetch_version`'s part.

    Args:
        version: as published.
        folder: local folder with the version's two files.
        model_dir: local folder of the base model that is being served.
        max_rank: the largest LoRA rank that the engine was started with.
        merges: whether it is to be merged into the base model's weights.

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
    if version.renderer not in NAMES:
        raise VerificationError(f"{where}: its renderer is {version.renderer!r}; known are {', '.join(NAMES)}.")
    template = _template_digest(version.renderer, model_dir, revision)
    if version.template_digest != template:
        raise VerificationError(
            f"{where} was trained with template {version.template_digest}, but {model_dir} renders with {template}: "
            f"the served tokens would be others. Put the model's chat template back, or train again."
        )
    config = read_lora_config(Path(folder) / CONFIG_FILE, where)
    check_lora_config(config, version, max_rank, where)
    _check_modules(version, config, Path(folder) / WEIGHTS_FILE, model_dir)
    if merges:
        _check_head(Path(folder) / WEIGHTS_FILE, model_dir, where)
    check_weights(Path(folder) / WEIGHTS_FILE, where)
    _check_probe(version, model_dir, where)


@functools.lru_cache(maxsize=8)
def _template_digest(renderer: str, model_dir: str, revision: str) -> str:
    """Return the digest of how a renderer renders for a model, whose revision covers its tokenizer's files.

    Kept, since reading a tokenizer takes a third of a second, beside an engine that runs.
    """
    del revision
    return get_renderer(renderer, load_tokenizer(model_dir)).template_digest


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


def _check_modules(version: Version, config: LoraConfig, path: Path, model_dir: str) -> None:
    """Compare the adapted modules and their shapes with the base model's own tensors, and with the targets."""
    where = f"{version.name}/{version.label}"
    base = _base_shapes(model_dir)
    shapes = {name: tuple(entry["shape"]) for name, entry in read_header(path).items()}
    modules = find_modules(shapes)
    if len(modules) != version.lora["modules"]:
        raise VerificationError(
            f"{where}: the file adapts {len(modules)} modules, but the version was published with "
            f"{version.lora['modules']}. The engine would answer with the base model where one is missing."
        )
    for module in sorted(modules):
        weight = base.get(f"{module}.weight")
        if weight is None or len(weight) != 2 or module.rpartition(".")[2] in _EMBEDDINGS:
            raise VerificationError(f"{where}: {module} is no linear layer of {version.base_model}.")
        if not config.has_target(module):
            raise VerificationError(f"{where}: {module} is adapted, but target_modules in {CONFIG_FILE} do not say so.")
        for part, expected in (("A", (config.rank, weight[1])), ("B", (weight[0], config.rank))):
            found = shapes.pop(f"{PREFIX}{module}.lora_{part}.weight", None)
            if found != expected:
                raise VerificationError(f"{where}: {module}.lora_{part} has shape {found}, not {expected}.")
    if shapes:
        raise VerificationError(f"{where}: tensors that are no LoRA factors: {', '.join(sorted(shapes)[:3])}.")
    unused = config.find_unused_target(modules)
    if unused is not None:
        raise VerificationError(f"{where}: {CONFIG_FILE} names the target {unused}, but no such module is adapted.")


def find_modules(names: Iterable[str]) -> set[str]:
    """Return the base model's names of the modules that an adapter's tensors adapt."""
    return {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in names}


def _check_head(path: Path, model_dir: str, where: str) -> None:
    """Refuse an adapted head that is the embeddings' own matrix: nothing can be added to one of the two alone."""
    tied = find_key(read_model_config(model_dir), "tie_word_embeddings")
    if HEAD in find_modules(read_header(path)) and (tied or f"{HEAD}.weight" not in _read_shapes(model_dir)):
        raise VerificationError(
            f"{where} adapts {HEAD}, which is tied to the embeddings and cannot be merged. Serve it as an adapter "
            '(adapter_mode = "lora"), or train again without it.'
        )


def _check_probe(version: Version, model_dir: str, where: str) -> None:
    """Refuse tokens that the base model does not have: the engine would refuse the question, not the version."""
    size = read_model_config(model_dir).get("vocab_size")
    highest = max((max(*point.prefix, point.token) for point in version.probe), default=0)
    if isinstance(size, int) and highest >= size:
        raise VerificationError(f"{where}: its probe asks for token {highest}, but {model_dir} has {size} tokens.")


def _base_shapes(model_dir: str) -> dict[str, tuple[int, ...]]:
    shapes = _read_shapes(model_dir)
    if not shapes:
        raise VerificationError(f"{model_dir} holds no .safetensors file, so no adapter can be compared with it.")
    if "model.embed_tokens.weight" in shapes:  # a tied head has no tensor of its own
        shapes.setdefault(f"{HEAD}.weight", shapes["model.embed_tokens.weight"])
    return shapes


def _read_shapes(model_dir: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in the base model's files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(model_dir).glob("*.safetensors")):
        shapes |= {name: tuple(entry["shape"]) for name, entry in read_header(path).items()}
    return shapes
