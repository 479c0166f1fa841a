"""How often the probe is wrong: right adapters that it refuses, wrong ones that it lets pass.

    python -m tests.bench.bench_probe [--adapters 100]

Adapters are trained on the tiny model, each on rows of its own, one half strongly, one half weakly (a few small
steps). Each is published with the probe that training makes, in float32. Then it is "served" as an engine does it:
base and adapter cast to the engine's dtype, one pass for each prefix. Served are the adapter itself; the base (what an
engine answers where an adapter's keys match no module); another adapter; a sibling (the same rows, another start: the
version before, say); and half of the adapter's layers.

Printed are, for each dtype, strength and kind, how many verifiable versions passed, and how far off they were, as a
share of the adapter's own shift: the rule lets a quarter pass. Unverifiable versions are counted apart.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raydistill.core.records import ProbePoint
from raydistill.registry.probe import probe_passes, probe_shift
from raydistill.scoring.model import load_model
from raydistill.scoring.probe import build_probe
from tests.bench.machine import describe_machine
from tests.plain_passes import plain_logprobs
from tests.tiny import VOCAB_SIZE, make_tiny_model

STRENGTHS = {"strong": (30, 5e-3), "weak": (4, 2e-3)}  # steps, learning rate
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RIGHT = "itself"
NUM_ROWS, PROMPT_TOKENS, RESPONSE_TOKENS, RANK = 8, 8, 12, 4


@dataclass(frozen=True)
class Trained:
    """An adapter, its sibling, and the probe that it is published with."""

    strength: str
    folder: Path
    sibling: Path
    probe: list[ProbePoint]
    verifiable: bool


def main() -> None:
    """Train, serve and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-probe-") as name:
        results = measure(Path(name), arguments.adapters)
    print(json.dumps({"machine": describe_machine(), "adapters": arguments.adapters, **summarise(results)}, indent=2))


def measure(folder: Path, num_adapters: int) -> list[dict[str, Any]]:
    """Return one entry for each adapter, dtype and kind of what was served instead of it."""
    model_dir = make_tiny_model(folder / "base")
    trained = [train_adapter(model_dir, folder / f"adapter{number}", number) for number in range(num_adapters)]
    results = []
    for number, item in enumerate(trained):
        served = {
            RIGHT: item.folder,
            "base": None,
            "another": trained[(number + 2) % num_adapters].folder,  # of the same strength
            "sibling": item.sibling,
            "half": keep_first_layer(item.folder, folder / f"half{number}"),
        }
        for dtype in DTYPES:
            for kind, adapter in served.items():
                logprobs = serve(model_dir, adapter, item.probe, DTYPES[dtype])
                off = sum(abs(value - point.adapter) for value, point in zip(logprobs, item.probe, strict=True))
                results.append(
                    {
                        "strength": item.strength,
                        "dtype": dtype,
                        "kind": kind,
                        "verifiable": item.verifiable,
                        "passed": probe_passes(item.probe, logprobs)[0],
                        "shift_nats": probe_shift(item.probe),
                        "share_off": off / len(item.probe) / probe_shift(item.probe),
                    }
                )
        print(f"{number + 1}/{num_adapters}", file=sys.stderr, flush=True)
    return results


def train_adapter(model_dir: str, folder: Path, seed: int) -> Trained:
    """Train two adapters on the same rows, from other starts, and build the first one's probe."""
    strength = list(STRENGTHS)[seed % len(STRENGTHS)]
    dice = random.Random(seed)
    rows = [
        (
            [dice.randrange(3, VOCAB_SIZE) for _ in range(PROMPT_TOKENS)],
            [dice.randrange(3, VOCAB_SIZE) for _ in range(RESPONSE_TOKENS)],
        )
        for _ in range(NUM_ROWS)
    ]
    for place, start in ((folder, seed), (folder / "sibling", seed + 100_000)):
        _train(model_dir, place, rows, start, *STRENGTHS[strength])
    probe, verifiable = build_probe(model_dir, folder, rows)
    return Trained(strength, folder, folder / "sibling", probe, verifiable)


def _train(
    model_dir: str, folder: Path, rows: list[tuple[list[int], list[int]]], seed: int, steps: int, lr: float
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"))
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=lr)
        tokens_BT = torch.tensor([prompt + response for prompt, response in rows])
        labels_BT = tokens_BT.clone()
        labels_BT[:, :PROMPT_TOKENS] = -100
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=tokens_BT, labels=labels_BT).loss.backward()
            optimizer.step()
    model.save_pretrained(str(folder), safe_serialization=True)


def keep_first_layer(folder: Path, target: Path) -> Path:
    """Copy an adapter without what it adapts in the second of the tiny model's two layers."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    path = target / "adapter_model.safetensors"
    save_file(
        {name: weight * (0 if ".layers.1." in name else 1) for name, weight in load_file(path).items()},
        path,
        metadata={"format": "pt"},
    )
    return target


def serve(model_dir: str, adapter: Path | None, probe: list[ProbePoint], dtype: torch.dtype) -> list[float]:
    """Return each probe point's log-probability as an engine of this dtype answers it: the logits in its dtype."""
    model = load_model(model_dir, adapter, dtype)
    return [float(plain_logprobs(model, point.prefix, [point.token])[0, point.token]) for point in probe]


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts and shares for each dtype, strength and kind, and the two kinds of wrong verdicts."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        if result["verifiable"]:
            groups[f"{result['dtype']} {result['strength']} {result['kind']}"].append(result)
    table = {
        name: {
            "versions": len(group),
            "passed": sum(result["passed"] for result in group),
            "share_off": {
                "least": round(min(result["share_off"] for result in group), 3),
                "median": round(statistics.median(result["share_off"] for result in group), 3),
                "most": round(max(result["share_off"] for result in group), 3),
            },
        }
        for name, group in sorted(groups.items())
    }
    counted = [result for result in results if result["verifiable"]]
    wrong = ("base", "another")
    return {
        "unverifiable_versions": len([1 for r in results if not r["verifiable"]]) // (len(DTYPES) * 5),
        "shift_nats": {
            strength: round(statistics.median(r["shift_nats"] for r in results if r["strength"] == strength), 2)
            for strength in {r["strength"] for r in results}
        },
        "false_refusals": sum(r["kind"] == RIGHT and not r["passed"] for r in counted),
        "false_passes": {kind: sum(r["kind"] == kind and r["passed"] for r in counted) for kind in wrong},
        "groups": table,
    }


if __name__ == "__main__":
    main()
