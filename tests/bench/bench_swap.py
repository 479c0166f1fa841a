"""Promotions under traffic: errors, mixed answers, what it costs the other requests, and how soon the new one answers.

    python -m tests.bench.bench_swap [--promotions 100] [--every 10] [--undisturbed 300] [--poll-seconds 2] [--merged]

A student on Serve, with the demo model and adapters of 20 MB. One chat a second comes in, of 32 tokens, streamed, in
turn to `triage` (the alias that moves), to `steady` (an adapter that stays) and to the base: undisturbed for a while,
then while `triage/final` is promoted ten times to versions that the replica has never seen, then undisturbed again, and
so on. With `--merged` all go to `triage`, which is merged into the weights. Who answers for `triage` is looked at by
chats of one token all the time, in both phases alike. Each piece of a stream names its version; an answer whose pieces
differ counts as mixed (that tokens and names agree is shown in float32 by tests/jobs/test_swaps_under_load.py).

Printed are the latencies of both phases, and for each promotion the seconds from the alias's move to the first answer
by the new version, with what the replica says of the way: record, download, digests, checks, load, probe, flip (from
the probe to the pointer's move); the rest is the wait for the next poll and the first answer itself. A 99th percentile
is told of 100 answers or more: by default there are 1,000 beside the promotions and 300 undisturbed ones.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from jobs.runtime import ClusterConfig, connect, disconnect, start_http
from raydistill.core.models import model_revision, resolve_model
from raydistill.core.records import Version
from raydistill.engine.config import EngineConfig
from raydistill.registry.aliases import move_alias
from raydistill.registry.publish import publish
from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest
from tests.bench.engines import make_adapter
from tests.bench.machine import describe_machine
from tests.loopback import free_port

MODEL = "demo://smollm2-135m-instruct"
RANK, SCALE, TOKENS = 32, 0.05, 32
ASKED = ("triage", "steady", MODEL)
TURN = 10  # promotions between two undisturbed whiles
LOOK_SECONDS = 0.25  # between two looks at who answers


def main() -> None:
    """Run both phases and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promotions", type=int, default=100)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between promotions")
    parser.add_argument("--undisturbed", type=float, default=300.0, help="seconds, of all whiles together")
    parser.add_argument("--poll-seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2, help="of the engine; as many as there are idle cores")
    parser.add_argument("--merged", action="store_true", help="a student with adapter_mode = merged")
    arguments = parser.parse_args()
    cluster = ClusterConfig.model_validate({"http_port": free_port()})
    with tempfile.TemporaryDirectory(prefix="bench-swap-") as name:
        versions = publish_versions(Path(name), arguments.promotions + 1)
        connect(cluster)
        try:
            from raydistill.serving import app

            url = start_http(cluster)
            engine = EngineConfig.model_validate(
                {"kv_cache_gib": 0.5, "max_lora_rank": RANK, "max_loras": 2, "omp_threads": arguments.threads}
                | ({"adapter_mode": "merged", "merged_alias": "triage/final"} if arguments.merged else {})
            )
            app.start(MODEL, name, engine, arguments.poll_seconds)
            result = asyncio.run(Bench(url, f"{name}/models/triage", arguments).run(versions))
        finally:
            disconnect(cluster)
    print(json.dumps({"machine": describe_machine(), "arguments": vars(arguments), **result}, indent=2))


def publish_versions(root: Path, count: int) -> list[Version]:
    """Publish so many versions of `triage`, and one of `steady`; each file is another one, the weights are two."""
    from safetensors.torch import load_file, save_file

    from raydistill.registry.check import find_modules
    from raydistill.scoring.probe import build_probe

    model_dir = resolve_model(MODEL)
    tokenizer = load_tokenizer(model_dir)
    # As long as those of the demo's: prefixes of 12 to 24 tokens.
    rows = [(list(range(100 * index, 100 * index + 12)), list(range(7, 20))) for index in range(1, 17)]
    drafts = []
    for seed in range(2):
        folder = make_adapter(model_dir, root / f"weights{seed}", seed, RANK, SCALE, "bfloat16")
        tensors = load_file(f"{folder}/adapter_model.safetensors")
        probe, verifiable = build_probe(model_dir, folder, rows)
        draft = Version(
            name="triage",
            number=0,
            base_model=MODEL,
            base_revision=model_revision(model_dir),
            tokenizer=tokenizer_digest(tokenizer),
            renderer="chat",
            template_digest=get_renderer("chat", tokenizer).template_digest,
            lora={"rank": RANK, "alpha": RANK, "targets": "all-linear", "modules": len(find_modules(tensors))},
            files=[],
            dataset_fingerprint="",
            prompt_digest="",
            metrics={},
            probe=probe,
            verifiable=verifiable,
        )
        drafts.append((draft, folder, tensors))
    draft, folder, _ = drafts[1]
    publish(f"{root}/models/steady", dataclasses.replace(draft, name="steady"), folder)
    move_alias(f"{root}/models/steady", "final", "v0001")
    versions = []
    for number in range(count):
        draft, folder, tensors = drafts[number % 2]
        save_file(tensors, f"{folder}/adapter_model.safetensors", metadata={"format": "pt", "copy": str(number)})
        versions.append(publish(f"{root}/models/triage", draft, folder))
    move_alias(f"{root}/models/triage", "final", versions[0].label)
    return versions


class Bench:
    """Traffic at a steady rate, and promotions beside it."""

    def __init__(self, url: str, uri: str, arguments: argparse.Namespace) -> None:
        """Take the front, the registry folder of the alias that moves, and how often."""
        self._http = httpx.AsyncClient(base_url=url, timeout=120)
        self._uri = uri
        self._arguments = arguments
        self._asked = ASKED[:1] if arguments.merged else ASKED
        self._answers: list[dict[str, Any]] = []
        self._seen: set[str] = set()  # versions that answered a look
        self._phase = "undisturbed"

    async def run(self, versions: list[Version]) -> dict[str, Any]:
        """Return what both phases showed."""
        for model in self._asked:
            await self._ask(model, TOKENS)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as others:
            others.create_task(self._send(over))
            others.create_task(self._look(over))
            promotions = await self._promote_all(versions[1:])
            over.set()
        phases = {phase: _describe(self._answers, phase) for phase in ("undisturbed", "promotions")}
        before, beside = (phases[phase]["p99_seconds"] for phase in ("undisturbed", "promotions"))
        parts = {name: [item["parts_seconds"][name] for item in promotions] for name in promotions[0]["parts_seconds"]}
        return {
            "phases": phases,
            "p99_ratio": round(beside / before, 3) if before and beside else None,
            "to_first_answer_seconds": _spread([item["to_first_answer_seconds"] for item in promotions]),
            "parts_seconds": {name: _spread(values) for name, values in parts.items()},
            "promotions": promotions,
        }

    async def _promote_all(self, versions: list[Version]) -> list[dict[str, Any]]:
        """Promote to one version after the other, with undisturbed whiles in between."""
        promotions = []
        while_seconds = self._arguments.undisturbed / math.ceil(len(versions) / TURN)
        for number, version in enumerate(versions):
            if number % TURN == 0:
                self._phase = "undisturbed"
                await asyncio.sleep(while_seconds)
                self._phase = "promotions"
            started = time.monotonic()
            promotions.append(await self._promote(version))
            print(json.dumps(promotions[-1]), file=sys.stderr, flush=True)
            await asyncio.sleep(max(0.0, self._arguments.every - (time.monotonic() - started)))
        return promotions

    async def _send(self, over: asyncio.Event) -> None:
        """Send one request a second, whether the ones before are answered or not."""
        tasks, start = [], time.monotonic()
        while not over.is_set():
            tasks.append(asyncio.create_task(self._note(self._asked[len(tasks) % len(self._asked)], self._phase)))
            await asyncio.sleep(max(0.0, start + len(tasks) - time.monotonic()))
        await asyncio.gather(*tasks)

    async def _look(self, over: asyncio.Event) -> None:
        """See who answers for `triage`, again and again."""
        while not over.is_set():
            self._seen |= await self._ask("triage", 1)
            await asyncio.sleep(LOOK_SECONDS)

    async def _note(self, model: str, phase: str) -> None:
        started = time.monotonic()
        try:
            names, error = await self._ask(model, TOKENS), None
        except (httpx.HTTPError, ValueError, KeyError) as failure:
            names, error = set(), repr(failure)
        seconds = time.monotonic() - started
        self._answers.append({"phase": phase, "model": model, "seconds": seconds, "names": names, "error": error})

    async def _ask(self, model: str, max_tokens: int) -> set[str]:
        """Return every version that a streamed answer names."""
        messages = [{"role": "user", "content": "I was charged twice for my order. Tell me what you will do."}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        answer = await self._http.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        if events[-1] != "[DONE]":
            raise ValueError("the stream has no end")
        return {json.loads(event)["model"] for event in events[:-1]}

    async def _promote(self, version: Version) -> dict[str, Any]:
        """Move the alias and ask for one token again and again, until the new version answers."""
        exact = f"{version.name}/{version.label}@{version.content_digest}"
        started = time.monotonic()
        await asyncio.to_thread(move_alias, self._uri, "final", version.label)
        moved = time.monotonic()
        while exact not in self._seen:
            await asyncio.sleep(0.02)
        seconds = time.monotonic() - moved
        status = (await self._http.get("/status")).json()
        parts = status["replicas"][0]["load_seconds"][exact]
        return {
            "version": version.label,
            "move_seconds": round(moved - started, 3),
            "to_first_answer_seconds": round(seconds, 3),
            "parts_seconds": {name: round(value, 3) for name, value in parts.items()},
            "poll_and_answer_seconds": round(seconds - sum(parts.values()), 3),
        }


def _describe(answers: list[dict[str, Any]], phase: str) -> dict[str, Any]:
    chosen = [answer for answer in answers if answer["phase"] == phase]
    seconds = [answer["seconds"] for answer in chosen if answer["error"] is None]
    return {
        "requests": len(chosen),
        "errors": [answer["error"] for answer in chosen if answer["error"] is not None],
        "mixed": sum(len(answer["names"]) > 1 for answer in chosen),
        "versions_that_answered": len({name for answer in chosen for name in answer["names"]}),
        **{f"{name}_seconds": value for name, value in _spread(seconds).items()},
    }


def _spread(values: list[float]) -> dict[str, float | None]:
    """Return median, 99th percentile (by the nearest rank; None of fewer than 100 values) and largest value."""
    ordered = sorted(values)
    p99 = round(ordered[math.ceil(0.99 * len(ordered)) - 1], 3) if len(ordered) >= 100 else None
    return {"median": round(statistics.median(ordered), 3), "p99": p99, "most": round(ordered[-1], 3)}


if __name__ == "__main__":
    main()
