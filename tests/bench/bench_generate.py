"""create_data through Ray Data and Serve, against one call of vLLM's LLM.generate over the same rows.

    python -m tests.bench.bench_generate [--rows 256] [--repeats 3] [--sides asked generate]

Both sides have the same engine arguments, the prefix cache on, and are asked in turns, in a random order, in one go;
an engine that is not asked sleeps. Each turn has rows of its own, so nothing but P is in a cache. Printed are
completion tokens a second of every turn, and their ratios pair by pair.

`asked` is create_data without its smoke gate, whole: plan, Ray Data's start, asking, commits and the keep pass.
`gated` is the same with the gate; `soft` records 20 log-probabilities a token; `generate` is LLM.generate.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs import create_data, data_plan
from jobs.data_config import CreateDataConfig
from jobs.runtime import ClusterConfig, connect, disconnect, start_http
from raydistill.core.answers import row_seed
from raydistill.core.idset import pack_ids
from raydistill.teacher.rows import find_rows, render_messages
from tests.bench.machine import describe_machine
from tests.loopback import free_port
from tests.processes import ROOT

QUERIES = ROOT / "jobs" / "configs" / "triage.queries.jsonl"
MODEL = "demo://smollm2-135m-instruct"
SIDES = ("asked", "gated", "soft", "generate")


def main() -> None:
    """Run the turns and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    arguments = parser.parse_args()

    cluster = ClusterConfig.model_validate({"num_cpus": 16, "object_store_mib": 300})
    connect(cluster)
    with tempfile.TemporaryDirectory(prefix="bench-generate-") as folder:
        bench = Bench(Path(folder), arguments.rows)
        chooser = random.Random(0)
        turns: list[dict[str, Any]] = []
        for number in range(arguments.repeats):
            sides = list(arguments.sides)
            chooser.shuffle(sides)
            for side in sides:
                turns.append({"pair": number, "side": side, **bench.run(side, number)})
                print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    disconnect(cluster)
    ratios = {
        f"{one}/{other}": _describe_ratio(turns, one, other)
        for one, other in itertools.permutations(arguments.sides, 2)
        if (one, other) in (("asked", "generate"), ("gated", "asked"), ("soft", "asked"))
    }
    print(
        json.dumps({"machine": describe_machine(), "rows": arguments.rows, "ratios": ratios, "turns": turns}, indent=2)
    )


def _describe_ratio(turns: list[dict[str, Any]], one: str, other: str) -> dict[str, float]:
    """Return the median and the range of a ratio of tokens a second, pair by pair."""
    rates = {(turn["pair"], turn["side"]): turn["tokens_per_second"] for turn in turns}
    ratios = [rates[pair, one] / rates[pair, other] for pair in {turn["pair"] for turn in turns}]
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


class Bench:
    """Both engines, and rows for each turn."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        """Start the teacher's application and a plain LLM with the same engine arguments."""
        import ray

        from raydistill.core.models import resolve_model
        from raydistill.engine.args import make_llm_config, vllm_args
        from raydistill.engine.config import EngineConfig
        from raydistill.engine.server import TokenServer
        from raydistill.teacher import app

        self._folder = folder
        self._num_rows = num_rows
        self._engine = EngineConfig.model_validate({"kv_cache_gib": 0.5})
        model_dir = resolve_model(MODEL)
        llm_config = make_llm_config(MODEL, model_dir, self._engine, TokenServer, lora=False)
        start_http(ClusterConfig.model_validate({"http_port": free_port()}))
        self._handle = app.start(MODEL, self._engine)
        args = vllm_args(self._engine, on_gpu=False, lora=False)
        self._plain = ray.remote(num_cpus=2, runtime_env=llm_config.runtime_env)(PlainEngine).remote(model_dir, args)
        ray.get(self._plain.ready.remote())
        texts = [json.loads(line)["text"] for line in QUERIES.read_text().splitlines()]
        self._texts = (f"{text} (Ticket {10_000 + index})" for index, text in enumerate(itertools.cycle(texts)))

    def run(self, side: str, number: int) -> dict[str, Any]:
        """Let one side answer rows that nobody was asked before; return what came out of it."""
        queries = self._folder / f"{side}-{number}.jsonl"
        with queries.open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in itertools.islice(self._texts, self._num_rows))
        config = CreateDataConfig.model_validate(
            {
                "output_file": str(self._folder / f"{side}-{number}"),
                "teacher_model": MODEL,
                "num_examples": self._num_rows,
                "queries": str(queries),
                "prompt": str(QUERIES.with_name("triage.prompt.json")),
                "max_tokens": 96,
                "temperature": 1.0,
                "concurrency": self._engine.max_num_seqs,
                "smoke_rows": 16 if side == "gated" else 0,
                "top_logprobs": 20 if side == "soft" else None,
            }
        )
        start = time.monotonic()
        if side == "generate":
            tokens = self._generate(config)
        else:
            tokens = create_data.run(config, self._handle, on_progress=lambda _: None).tokens["completion"]
        seconds = time.monotonic() - start
        return {"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds, 2)}

    def _generate(self, config: CreateDataConfig) -> int:
        """Ask the plain engine for the rows that create_data would ask; rendering them is part of the work."""
        import ray

        plan = data_plan.make_plan(config)
        seeds_and_rows = [
            (row_seed(row["id"]), render_messages(json.loads(row["messages"]), plan.prompt, plan.renderer))
            for row in find_rows(plan.source(), plan.choice, pack_ids([]))
        ]
        stop = plan.renderer.get_stop_sequences()
        return ray.get(self._plain.generate.remote(seeds_and_rows, stop, config.max_tokens, config.temperature))


class PlainEngine:
    """vLLM's LLM in a process of its own, with the environment of the teacher's replica."""

    def __init__(self, model_dir: str, args: dict[str, Any]) -> None:
        """Load the model."""
        from vllm import LLM

        self._llm = LLM(model=model_dir, **args)

    def ready(self) -> None:
        """Return when the engine is up."""

    def generate(self, rows: list[tuple[int, list[int]]], stop: list[int], max_tokens: int, temperature: float) -> int:
        """Return how many tokens the answers have."""
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=tokens) for _, tokens in rows]
        params = [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                stop_token_ids=stop,
                logprobs=0,
                detokenize=False,
            )
            for seed, _ in rows
        ]
        return sum(len(output.outputs[0].token_ids) for output in self._llm.generate(prompts, params, use_tqdm=False))


if __name__ == "__main__":
    main()
