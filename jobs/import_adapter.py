"""Make a version of a LoRA adapter that was trained elsewhere (PEFT's format): checked like any, never trusted.

python -m jobs.import_adapter adapter_dir=/tmp/lora name=triage base_model=MODEL storage=s3://bucket/root
"""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, field_validator

from jobs import task
from jobs.places import find_model
from jobs.runtime import run_main
from raydistill.core import storage
from raydistill.core.config import Section
from raydistill.core.errors import ConfigError, NotFoundError, VerificationError
from raydistill.core.models import model_revision
from raydistill.core.preflight import check_storage
from raydistill.core.records import ProbePoint, Version
from raydistill.core.uris import absolute, check_name, join
from raydistill.queries.read import read_queries
from raydistill.registry.check import check_version, find_modules
from raydistill.registry.files import CONFIG_FILE, MAX_CONFIG_BYTES, MAX_FILE_BYTES, WEIGHTS_FILE, read_header
from raydistill.registry.lora_config import read_lora_config
from raydistill.registry.publish import publish
from raydistill.renderers import Renderer, get_renderer, load_tokenizer, tokenizer_digest

NUM_PROMPTS = 16
RESPONSE_TOKENS = 16
# Asked of an adapter about which nothing is known; an adapter for one narrow task wants queries= of that task.
PROMPTS = (
    "Hello!",
    "Who are you?",
    "What can you do for me?",
    "Write one sentence about the sea.",
    "Summarise: the meeting was moved from Monday to Thursday.",
    "Translate into French: good morning.",
    "What is 17 + 25?",
    "My order has not arrived. What now?",
    "List three colours.",
    "Is this review good or bad? The food was cold.",
    "Explain what a variable is.",
    "Give me a title for a story about a lighthouse.",
)
logger = logging.getLogger(__name__)


class ImportConfig(Section):
    """What to import, and what it belongs to."""

    adapter_dir: str
    """PEFT's folder, or its s3:// URI: adapter_config.json and adapter_model.safetensors."""
    name: str
    """The model's name: the version becomes one of storage/models/NAME."""
    base_model: str
    """The base model it was trained on: a folder, a hub id, s3:// or demo://."""
    storage: str = ".raydistill"
    """ROOT of the registry: a folder or s3://bucket/key."""
    renderer: Literal["chat", "raw"] = "chat"
    """How messages become tokens for this model."""
    queries: str | None = None
    """A .jsonl file of queries for the probe; by default a few plain ones."""
    max_lora_rank: int = Field(64, ge=1)
    """The largest rank that the student will be started with."""

    @field_validator("name")
    @classmethod
    def _name_is_usable(cls, name: str) -> str:
        return check_name(name)


def run(config: ImportConfig) -> Version:
    """Check an adapter against its base model, build its probe, publish it and return the version; no alias moves.

    Raises:
        ConfigError, NotFoundError: bad input; nothing was written.
        VerificationError: the adapter is no plain LoRA of this base model, or not sound; nothing was written.
    """
    uri = join(absolute(config.storage), "models", config.name)
    check_storage("storage", uri)
    check_storage("adapter_dir", config.adapter_dir, read_only=True)
    model_dir = find_model(config.base_model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _copy_adapter(config.adapter_dir, folder)
        draft, prompts = _describe(config, model_dir, folder)
        probe, verifiable = _probe(model_dir, folder, prompts)
        version = publish(uri, dataclasses.replace(draft, probe=probe, verifiable=verifiable), temporary)
    if not verifiable:
        logger.warning(
            "The adapter hardly moves the probe's tokens: it is unverifiable, and only a forced promotion makes it "
            "final. Import it again with queries= of its own task."
        )
    return version


def _copy_adapter(adapter_dir: str, folder: Path) -> None:
    """Copy the two files, and nothing that would have to be unpickled, into a private folder."""
    source = absolute(adapter_dir)
    names = storage.list_names(source)
    if WEIGHTS_FILE not in names:
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
        if pickled:
            raise ConfigError(
                f"adapter_dir: {adapter_dir} holds {pickled[0]} and no {WEIGHTS_FILE}. A pickle runs code when it is "
                "loaded, so it is not read here. Where you trust it, load it with PEFT on a machine of its own and "
                "save it with model.save_pretrained(FOLDER, safe_serialization=True); then import that folder."
            )
        known = ", ".join(names[:8]) or "nothing"
        raise NotFoundError(f"adapter_dir: {adapter_dir} holds no {WEIGHTS_FILE} (it holds {known}).")
    weights = storage.read_bytes(join(source, WEIGHTS_FILE), MAX_FILE_BYTES)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    try:
        config = json.loads(storage.read_bytes(join(source, CONFIG_FILE), MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"adapter_dir: {adapter_dir}/{CONFIG_FILE} is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ConfigError(f"adapter_dir: {adapter_dir}/{CONFIG_FILE} holds no JSON object.")
    if not isinstance(config.get("target_modules"), list):  # a pattern, which everybody reads in another way
        config["target_modules"] = _find_targets(folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _find_targets(weights: Path) -> list[str]:
    """Return the last names of the adapted modules."""
    return sorted({module.rpartition(".")[2] for module in find_modules(read_header(weights))})


def _describe(config: ImportConfig, model_dir: str, folder: Path) -> tuple[Version, list[list[int]]]:
    """Return the version as it is to be, without a probe, checked like any other, and the probe's prompts."""
    tokenizer = load_tokenizer(model_dir)
    renderer = get_renderer(config.renderer, tokenizer)
    prompts = _render_prompts(config, renderer)
    try:
        lora = read_lora_config(folder / CONFIG_FILE, config.name)
        draft = Version(
            name=config.name,
            number=0,
            base_model=config.base_model,
            base_revision=model_revision(model_dir),
            tokenizer=tokenizer_digest(tokenizer),
            renderer=config.renderer,
            template_digest=renderer.template_digest,
            lora={
                "rank": lora.rank,
                "alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
                "targets": lora.targets,
                "modules": len(find_modules(read_header(folder / WEIGHTS_FILE))),
            },
            files=[],
            dataset_fingerprint="",
            prompt_digest="",
            metrics={"imported_from": config.adapter_dir},
            probe=[],
            verifiable=False,
        )
        check_version(draft, folder, model_dir, config.max_lora_rank)
    except VerificationError as error:
        raise VerificationError(f"adapter_dir: {config.adapter_dir} cannot be imported: {error}") from error
    _compare_base(config, folder)
    return draft, prompts


def _compare_base(config: ImportConfig, folder: Path) -> None:
    trained_on = str(json.loads((folder / CONFIG_FILE).read_bytes()).get("base_model_name_or_path") or "")
    if trained_on and PurePosixPath(trained_on).name.lower() != PurePosixPath(config.base_model).name.lower():
        logger.warning(
            "The adapter says it was trained on %s, and is imported for %s: the shapes fit, more is not known.",
            trained_on,
            config.base_model,
        )


def _render_prompts(config: ImportConfig, renderer: Renderer) -> list[list[int]]:
    conversations = [[{"role": "user", "content": text}] for text in PROMPTS]
    if config.queries is not None:
        conversations = [query.messages for query in read_queries(config.queries)]
    prompts = [renderer.build_generation_prompt(messages).to_ints() for messages in conversations]
    return sorted(prompts, key=lambda prompt: (len(prompt), prompt))[:NUM_PROMPTS]


def _probe(model_dir: str, folder: Path, prompts: list[list[int]]) -> tuple[list[ProbePoint], bool]:
    from raydistill.scoring.generate import complete_greedily
    from raydistill.scoring.probe import MAX_PREFIX_TOKENS, build_probe

    short = [prompt for prompt in prompts if len(prompt) <= MAX_PREFIX_TOKENS - RESPONSE_TOKENS]
    return build_probe(model_dir, folder, complete_greedily(model_dir, folder, short, RESPONSE_TOKENS))


def main(argv: Sequence[str]) -> None:
    """Run the job from a command line's arguments."""
    _, sections = task.load(argv, {"import_adapter": ImportConfig}, "import_adapter")
    config = sections["import_adapter"]
    assert isinstance(config, ImportConfig)
    version = run(config)
    print(f"{version.name}/{version.label} in {join(absolute(config.storage), 'models', version.name, version.label)}")


if __name__ == "__main__":
    run_main(main)
