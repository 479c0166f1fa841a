"""`adapter_config.json`: only plain LoRA, of the published rank and scale, on modules that it names."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import NotFoundError, VerificationError
from raydistill.core.records import Version
from raydistill.registry.files import CONFIG_FILE, MAX_CONFIG_BYTES

MAX_SCALE = 100.0  # alpha / rank; usual is 0.5 to 4
ALL_LINEAR = "all-linear"

# What PEFT writes for plain LoRA. Anything else the engine would leave out in silence, or add.
_PLAIN: dict[str, Any] = {
    "use_dora": False,
    "use_rslora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "kasa_config": None,
    "arrow_config": None,
    "monteclora_config": None,
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "layer_replication": None,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
# These begin with a changed base model ("pissa", "olora", "corda", "loftq", ...), which nobody serves; these do not.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraConfig:
    """What of the file matters.

    Attributes:
        targets: names of modules, whole or their last parts; "all-linear" where the file says so.
    """

    rank: int
    alpha: float
    targets: list[str] | str

    def has_target(self, module: str) -> bool:
        """Return whether PEFT would adapt a module, given by its full name in the base model."""
        return self.targets == ALL_LINEAR or any(_matches(module, target) for target in self.targets)

    def find_unused_target(self, modules: set[str]) -> str | None:
        """Return a target that none of these modules is, None where there is no such target."""
        if self.targets == ALL_LINEAR:
            return None
        return next((target for target in self.targets if not any(_matches(name, target) for name in modules)), None)


def _matches(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def read_lora_config(path: Path, where: str) -> LoraConfig:
    """Return a plain LoRA's configuration.

    Args:
        path: of `adapter_config.json`.
        where: the version, for messages.

    Raises:
        VerificationError: it is none, or of another kind of adapter.
    """
    try:
        config = json.loads(storage.read_bytes(str(path), MAX_CONFIG_BYTES))
        rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    except (NotFoundError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise VerificationError(f"{where}: {CONFIG_FILE} is no LoRA configuration ({error!r:.200}).") from error
    if type(rank) is not int or type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise VerificationError(f"{where}: {CONFIG_FILE} is no LoRA configuration (r={rank!r}, lora_alpha={alpha!r}).")
    if config.get("peft_type") != "LORA":
        raise VerificationError(f"{where}: peft_type is {config.get('peft_type')!r}; only LORA is served.")
    for key, plain in _PLAIN.items():
        if (config.get(key, plain) or None) != (plain or None):
            raise VerificationError(f"{where}: {CONFIG_FILE} has {key}={config[key]!r}; only plain LoRA is served.")
    init = config.get("init_lora_weights")
    if not isinstance(init, (bool, str, type(None))) or init not in _INITS:
        raise VerificationError(
            f"{where}: {CONFIG_FILE} has init_lora_weights={init!r}, which starts from a changed base model. Convert "
            "the adapter to plain LoRA with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    named = isinstance(targets, list) and bool(targets) and all(isinstance(target, str) for target in targets)
    if not named and targets != ALL_LINEAR:
        raise VerificationError(
            f"{where}: {CONFIG_FILE} has target_modules={targets!r:.100}; allowed is a list of names or {ALL_LINEAR!r}."
        )
    return LoraConfig(rank, float(alpha), targets)


def check_lora_config(config: LoraConfig, version: Version, max_rank: int, where: str) -> None:
    """Compare a configuration with what was published and with what the engine takes.

    Raises:
        VerificationError: with the first reason found.
    """
    if config.rank != version.lora["rank"] or config.alpha != version.lora["alpha"]:
        raise VerificationError(
            f"{where}: {CONFIG_FILE} has rank {config.rank} and alpha {config.alpha:g}, but the version was published "
            f"with rank {version.lora['rank']} and alpha {version.lora['alpha']}."
        )
    if not 1 <= config.rank <= max_rank:
        raise VerificationError(
            f"{where}: rank {config.rank} does not fit; the engine was started for ranks up to {max_rank}. "
            f"Start it with max_lora_rank={config.rank} or more."
        )
    if not 0 < config.alpha / config.rank <= MAX_SCALE:
        raise VerificationError(
            f"{where}: alpha/rank is {config.alpha / config.rank:g}; allowed is above 0 up to {MAX_SCALE:g}."
        )
