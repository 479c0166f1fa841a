"""What serving without P saves: a prompt-free student against the base with P in every request.

    python -m tests.bench.bench_prompt_free [--batches 1 32 64] [--tokens 32] [--repeats 3]

Arms: `adapter` (no P, the student as an adapter), `merged` (no P, the student merged into the base's weights),
`with_p` (the base, P in the prefix cache), `with_p_uncached` (the base, without a prefix cache). Every request has a
text of its own and generates so many tokens. The adapter is random: what it says costs the same.

Printed are, for each arm and batch, tokens a second, the median time to the first token in seconds, and money: of the
machine for a million completion tokens, and of an API for a thousand requests, by prices that are arguments. Beside
it, the most tokens a second that the memory allows: a decoding step reads every weight once and every row's keys and
values; how fast this machine reads is measured.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raydistill.core.models import read_model_config, resolve_model
from raydistill.core.prompts import load_prompt, student_messages, teacher_messages
from raydistill.engine.config import EngineConfig
from raydistill.renderers import get_renderer, load_tokenizer
from tests.bench.engines import generate, make_adapter, open_engine
from tests.bench.machine import describe_machine
from tests.processes import ROOT

MODEL = "demo://smollm2-135m-instruct"
PROMPT = ROOT / "jobs" / "configs" / "triage.prompt.json"
QUERIES = ROOT / "jobs" / "configs" / "triage.queries.jsonl"
RANK, SCALE, BYTES = 32, 0.05, 2  # bfloat16
WARM_UP_ROWS = 2


def main() -> None:
    """Run every arm on an engine of its own kind and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 64])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--machine-hour", type=float, default=0.10, help="price of this machine for an hour")
    parser.add_argument(
        "--prices", type=float, nargs=3, default=[1.0, 0.1, 4.0], help="of 1e6 prompt, cached and completion tokens"
    )
    arguments = parser.parse_args()
    model_dir = resolve_model(MODEL)
    config = EngineConfig.model_validate({"kv_cache_gib": 1.0, "max_lora_rank": RANK, "max_loras": 1})
    texts = Texts(model_dir)
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-prompt-free-") as name:
        adapter_dir = make_adapter(model_dir, Path(name) / "adapter", 0, RANK, SCALE)
        merged_dir = merge(model_dir, adapter_dir, Path(name) / "merged")
        with open_engine(model_dir, config, lora=True) as llm:
            from vllm.lora.request import LoRARequest

            turns += _run(llm, "adapter", texts, arguments, LoRARequest("student", 1, adapter_dir))
        with open_engine(merged_dir, config, lora=False) as llm:
            turns += _run(llm, "merged", texts, arguments)
        with open_engine(model_dir, config, lora=False) as llm:
            turns += _run(llm, "with_p", texts, arguments)
        with open_engine(model_dir, config, lora=False, enable_prefix_caching=False) as llm:
            turns += _run(llm, "with_p_uncached", texts, arguments)
    limits = Limits(model_dir)
    rows = [_summarise(group, arguments, texts, limits) for group in _group(turns)]
    document = {"machine": describe_machine(), "arguments": vars(arguments), **texts.describe(), **limits.describe()}
    print(json.dumps({**document, "results": rows}, indent=2))


class Texts:
    """Requests that nobody asked before, with P or without."""

    def __init__(self, model_dir: str) -> None:
        """Read P, the queries and the tokenizer."""
        self._renderer = get_renderer("chat", load_tokenizer(model_dir))
        self._prompt = load_prompt(str(PROMPT))
        texts = [json.loads(line)["text"] for line in QUERIES.read_text().splitlines()]
        self._texts = (f"{text} (Ticket {10_000 + index})" for index, text in enumerate(itertools.cycle(texts)))
        self.lengths: dict[bool, list[int]] = {True: [], False: []}

    def take(self, count: int, with_p: bool) -> list[list[int]]:
        """Return the tokens of so many new requests."""
        rows = []
        for text in itertools.islice(self._texts, count):
            query = [{"role": "user", "content": text}]
            messages = teacher_messages(self._prompt, query) if with_p else student_messages(query)
            rows.append(self._renderer.build_generation_prompt(messages).to_ints())
            self.lengths[with_p].append(len(rows[-1]))
        return rows

    def describe(self) -> dict[str, float]:
        """Return the mean lengths of the prompts that were asked."""
        return {
            "prompt_tokens_with_p": round(statistics.mean(self.lengths[True]), 1),
            "prompt_tokens_without_p": round(statistics.mean(self.lengths[False]), 1),
        }


def merge(model_dir: str, adapter_dir: str, folder: Path) -> str:
    """Save base and adapter merged, in float32 and then in the engine's dtype; returns the folder."""
    import torch

    from raydistill.scoring.model import load_model

    model = load_model(model_dir, adapter_dir).merge_and_unload().to(torch.bfloat16)
    model.save_pretrained(str(folder), safe_serialization=True)
    load_tokenizer(model_dir).save_pretrained(str(folder))
    return str(folder)


def _run(llm: Any, arm: str, texts: Texts, arguments: argparse.Namespace, adapter: Any = None) -> list[dict[str, Any]]:
    with_p = arm.startswith("with_p")
    generate(llm, [(tokens, adapter) for tokens in texts.take(WARM_UP_ROWS, with_p)], 2)
    turns = []
    for batch, number in itertools.product(arguments.batches, range(arguments.repeats)):
        rows = [(tokens, adapter) for tokens in texts.take(batch, with_p)]
        outputs, seconds = generate(llm, rows, arguments.tokens)
        first = [output.metrics.first_token_latency for output in outputs]
        cached = sum(output.num_cached_tokens or 0 for output in outputs) / batch
        turns.append(
            {
                "arm": arm,
                "batch": batch,
                "repeat": number,
                "tokens_per_second": batch * arguments.tokens / seconds,
                "first_token_seconds": statistics.median(first),
                "cached_tokens": cached,
            }
        )
        print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    return turns


def _group(turns: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    keys = dict.fromkeys((turn["arm"], turn["batch"]) for turn in turns)
    return [[turn for turn in turns if (turn["arm"], turn["batch"]) == key] for key in keys]


class Limits:
    """How many tokens a second the memory allows, from the bytes that a decoding step has to read."""

    def __init__(self, model_dir: str) -> None:
        """Measure how fast this machine reads memory, and look up the model's sizes."""
        import torch

        config = read_model_config(model_dir)
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        self._kv_bytes_a_token = 2 * config["num_hidden_layers"] * heads * head_dim * BYTES
        files = sum(path.stat().st_size for path in Path(model_dir).glob("*.safetensors"))
        self._weight_bytes = files * BYTES // _bytes_a_weight(model_dir)
        block = torch.ones(2**28)  # 1 GiB
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            torch.dot(block, block)
            rates.append(block.nbytes / (time.perf_counter() - start))
        self._bytes_a_second = max(rates)

    def most_tokens_per_second(self, batch: int, context_tokens: float) -> float:
        """Return the limit for so many rows of so much context each."""
        step_bytes = self._weight_bytes + batch * context_tokens * self._kv_bytes_a_token
        return batch * self._bytes_a_second / step_bytes

    def describe(self) -> dict[str, float]:
        """Return what the limits are made of."""
        return {
            "weight_mb": round(self._weight_bytes / 1e6, 1),
            "keys_and_values_kb_a_token": round(self._kv_bytes_a_token / 1e3, 1),
            "memory_gb_per_second": round(self._bytes_a_second / 1e9, 1),
        }


def _bytes_a_weight(model_dir: str) -> int:
    from raydistill.registry.files import read_header

    header = read_header(next(iter(sorted(Path(model_dir).glob("*.safetensors")))))
    return {"F32": 4, "BF16": 2, "F16": 2}[next(iter(header.values()))["dtype"]]


def _summarise(
    turns: list[dict[str, Any]], arguments: argparse.Namespace, texts: Texts, limits: Limits
) -> dict[str, Any]:
    arm, batch = turns[0]["arm"], turns[0]["batch"]
    rate = statistics.median(turn["tokens_per_second"] for turn in turns)
    prompt = statistics.mean(texts.lengths[arm.startswith("with_p")])
    cached = statistics.mean(turn["cached_tokens"] for turn in turns)
    whole_price, cached_price, completion_price = arguments.prices
    api = (prompt - cached) * whole_price + cached * cached_price + arguments.tokens * completion_price
    return {
        "arm": arm,
        "batch": batch,
        "tokens_per_second": round(rate, 1),
        "first_token_seconds": round(statistics.median(turn["first_token_seconds"] for turn in turns), 3),
        "cached_tokens": round(cached, 1),
        "machine_price_of_1e6_tokens": round(arguments.machine_hour / 3600 / rate * 1e6, 3),
        "api_price_of_1e3_requests": round(api / 1e3, 4),
        "memory_limit_tokens_per_second": round(limits.most_tokens_per_second(batch, prompt + arguments.tokens / 2), 1),
    }


if __name__ == "__main__":
    main()
