"""create_data through Ray Data and Serve, against one call of vLLM's LLM.generate over the same rows.

    python -m tests.bench.bench_generate [--rows 256] [--repeats 3] [--sides asked generate data_llm]

Both sides have the same engine arguments, the prefix cache on, and are asked in turns, in a random order, in one go;
an engine that is not asked sleeps. Each turn has rows of its own, so nothing but P is in a cache. Printed are
completion tokens a second of every turn, and their ratios pair by pair.

`asked` is create_data without its smoke gate, whole: plan, Ray Data's start, asking, commits and the keep pass.
`gated` is the same with the gate; `soft` records 20 log-probabilities a token; `generate` is LLM.generate, of an engine
with our plugins as the teacher's has them, `unaided` of one without those that make it faster; `data_llm` is the vLLM
processor of ray.data.llm, which starts an engine of its own each time: the time of 8 rows is taken off.
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
from tests.bench import ray_data_llm
from tests.bench.machine import describe_machine
from tests.loopback import free_port
from tests.processes import ROOT

QUERIES = ROOT / "jobs" / "configs" / "triage.queries.jsonl"
MODEL = "demo://smollm2-135m-instruct"
SIDES = ("asked", "gated", "soft", "generate", "unaided", "data_llm")
RATIOS = (("asked", "generate"), ("asked", "unaided"), ("gated", "asked"), ("soft", "asked"), ("asked", "data_llm"))
SEEDS = "raydistill_cpu_seeds"  # without it an engine on CPU dies of a row with a seed whose prompt is cut
START_ROWS = 8  # that show how long ray.data.llm takes to start


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
        bench = Bench(Path(folder), arguments.rows, arguments.sides)
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
        for one, other in RATIOS
        if one in arguments.sides and other in arguments.sides
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
    """The engines, and rows for each turn."""

    def __init__(self, folder: Path, num_rows: int, sides: list[str]) -> None:
        """Start the teacher's application, and for sides that want it an LLM with the same engine arguments."""
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
        self._args = vllm_args(self._engine, on_gpu=False, lora=False)
        self._env = llm_config.runtime_env or {}
        self._model_dir = model_dir
        variables = self._env["env_vars"]
        environments = {"generate": variables, "unaided": variables | {"VLLM_PLUGINS": SEEDS}}
        self._plain: dict[str, Any] = {}
        for side in environments.keys() & set(sides):
            actor = ray.remote(num_cpus=2, runtime_env={"env_vars": environments[side]})(PlainEngine)
            self._plain[side] = actor.remote(model_dir, self._args)
            ray.get(self._plain[side].ready.remote())
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
                "smoke_rows": 16 if side == "gated" else 0,
                "top_logprobs": 20 if side == "soft" else None,
            }
        )
        start = time.monotonic()
        if side == "data_llm":
            tokens, seconds = self._answer_with_data_llm(config)
        elif side in self._plain:
            tokens, seconds = self._generate(side, config), time.monotonic() - start
        else:
            manifest = create_data.run(config, self._handle, on_progress=lambda _: None)
            tokens, seconds = manifest.tokens["completion"], time.monotonic() - start
        return {"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds, 2)}

    def _generate(self, side: str, config: CreateDataConfig) -> int:
        """Ask a plain engine for the rows that create_data would ask; rendering them is part of the work."""
        import ray

        rows, sampling = _render(config)
        return ray.get(self._plain[side].generate.remote(rows, sampling))

    def _answer_with_data_llm(self, config: CreateDataConfig) -> tuple[int, float]:
        rows, sampling = _render(config)
        where = (sampling, self._model_dir, self._args, self._env)
        few_tokens, few_seconds = ray_data_llm.answer(rows[:START_ROWS], *where)
        tokens, seconds = ray_data_llm.answer(rows[START_ROWS:], *where)
        print(json.dumps({"data_llm_start_seconds": few_seconds, "tokens": few_tokens}), file=sys.stderr, flush=True)
        return tokens, seconds - few_seconds


def _render(config: CreateDataConfig) -> tuple[list[tuple[int, list[int]]], dict[str, Any]]:
    """Return (seed, prompt tokens) of each row that create_data would ask, and vLLM's sampling parameters."""
    plan = data_plan.make_plan(config)
    rows = [
        (row_seed(row["id"]), render_messages(json.loads(row["messages"]), plan.prompt, plan.renderer))
        for row in find_rows(plan.source(), plan.choice, pack_ids([]))
    ]
    return rows, {
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "stop_token_ids": plan.renderer.get_stop_sequences(),
        "logprobs": 0,
        "detokenize": False,
    }


class PlainEngine:
    """vLLM's LLM in a process of its own, with the environment of the teacher's replica."""

    def __init__(self, model_dir: str, args: dict[str, Any]) -> None:
        """Load the model."""
        from vllm import LLM

        self._llm = LLM(model=model_dir, **args)

    def ready(self) -> None:
        """Return when the engine is up."""

    def generate(self, rows: list[tuple[int, list[int]]], sampling: dict[str, Any]) -> int:
        """Return how many tokens the answers have."""
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=tokens) for _, tokens in rows]
        params = [SamplingParams(seed=seed, **sampling) for seed, _ in rows]
        return sum(len(output.outputs[0].token_ids) for output in self._llm.generate(prompts, params, use_tqdm=False))


if __name__ == "__main__":
    main()
