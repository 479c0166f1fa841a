"""Tokens a second with adapters, against the bare base on the same engine; and whether mixed answers equal solo ones.

    python -m tests.bench.bench_lora [--rows 32] [--tokens 48] [--repeats 3] [--rank 32] [--dtype bfloat16]

Turns, in a random order: `base` (no row has an adapter), `one` (all have the same), `four` (four in turn), `mixed`
(base and four in turn); and a lone request on the base and on an adapter. Each turn has prompts that nobody asked
before. Printed are tokens a second of each turn and the ratios to the base of the same repeat.

Then rows of a mixed batch are asked alone. In float32 all must be equal; in bfloat16 near ties flip, so compared are
the log-probabilities of the tokens that both chose before they part.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from raydistill.core.models import resolve_model
from raydistill.engine.config import EngineConfig
from tests.bench.engines import generate, make_adapter, open_engine, read_answer
from tests.bench.machine import describe_machine

MODEL = "demo://smollm2-135m-instruct"
NUM_ADAPTERS, PROMPT_TOKENS, SCALE = 4, 40, 0.05
SIDES = ("base", "one", "four", "mixed", "lone_base", "lone_one")


def main() -> None:
    """Run the turns and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--solo", type=int, default=10, help="rows that are asked alone")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    arguments = parser.parse_args()
    config = EngineConfig.model_validate(
        {"kv_cache_gib": 0.5, "max_lora_rank": arguments.rank, "max_loras": NUM_ADAPTERS, "dtype": arguments.dtype}
    )
    model_dir = resolve_model(MODEL)
    with (
        tempfile.TemporaryDirectory(prefix="bench-lora-") as name,
        open_engine(model_dir, config, lora=True) as llm,
    ):
        from vllm.lora.request import LoRARequest

        folders = [
            make_adapter(model_dir, Path(name) / f"a{seed}", seed, arguments.rank, SCALE)
            for seed in range(NUM_ADAPTERS)
        ]
        adapters = [LoRARequest(f"a{index}", index, folder) for index, folder in enumerate(folders, 1)]
        turns = _run_turns(llm, adapters, arguments)
        solo = _compare(llm, adapters, arguments)
    print(
        json.dumps(
            {
                "machine": describe_machine(),
                "arguments": vars(arguments),
                "to_base": _describe_ratios(turns),
                "solo": solo,
                "turns": turns,
            },
            indent=2,
        )
    )


def _choose(side: str, adapters: list[Any], num_rows: int) -> list[Any]:
    """Return the adapter of each row of a turn."""
    pattern = {
        "base": [None],
        "one": adapters[:1],
        "four": adapters,
        "mixed": [None, *adapters],
        "lone_base": [None],
        "lone_one": adapters[:1],
    }[side]
    count = 1 if side.startswith("lone") else num_rows
    return [pattern[index % len(pattern)] for index in range(count)]


def _run_turns(llm: Any, adapters: list[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    dice, turns = random.Random(0), []
    generate(llm, [([5, 6, 7], adapter) for adapter in [None, *adapters]], 2)  # every adapter is loaded
    for number in range(arguments.repeats):
        for side in dice.sample(SIDES, len(SIDES)):
            chosen = _choose(side, adapters, arguments.rows)
            rows = [([dice.randrange(100, 40_000) for _ in range(PROMPT_TOKENS)], adapter) for adapter in chosen]
            _, seconds = generate(llm, rows, arguments.tokens)
            rate = len(rows) * arguments.tokens / seconds
            turns.append({"repeat": number, "side": side, "tokens_per_second": round(rate, 1)})
            print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    return turns


def _describe_ratios(turns: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    rates = {(turn["repeat"], turn["side"]): turn["tokens_per_second"] for turn in turns}
    found = {}
    for side in ("one", "four", "mixed", "lone_one"):
        base = "lone_base" if side == "lone_one" else "base"
        ratios = [rates[repeat, side] / rates[repeat, base] for repeat in {turn["repeat"] for turn in turns}]
        found[side] = {
            "median": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        }
    return found


def _compare(llm: Any, adapters: list[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the first rows of a mixed batch with the same rows alone."""
    dice = random.Random(1)
    chosen = _choose("mixed", adapters, arguments.rows)
    rows = [([dice.randrange(100, 40_000) for _ in range(PROMPT_TOKENS)], adapter) for adapter in chosen]
    mixed = [read_answer(output) for output in generate(llm, rows, arguments.tokens)[0][: arguments.solo]]
    alone = [read_answer(generate(llm, [row], arguments.tokens)[0][0]) for row in rows[: arguments.solo]]
    differences = [0.0]
    for (tokens, logprobs), (solo_tokens, solo_logprobs) in zip(mixed, alone, strict=True):
        pairs = zip(tokens, solo_tokens, logprobs, solo_logprobs, strict=True)
        for token, solo_token, logprob, solo_logprob in pairs:
            if token != solo_token:
                break
            differences.append(abs(logprob - solo_logprob))
    return {
        "rows": len(mixed),
        "equal": sum(one[0] == other[0] for one, other in zip(mixed, alone, strict=True)),
        "tokens_compared": len(differences) - 1,
        "largest_logprob_difference": round(max(differences), 4),
        "adapters_answer_alike": len({tuple(tokens) for tokens, _ in alone}) == 1,
    }


if __name__ == "__main__":
    main()
