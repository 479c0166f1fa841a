"""A Serve application with the engine's surface whose answers are a hash of tokens and seed: no model, same protocol.

Queries choose its faults by words in the prompt: "TRUNCATE" never ends, "EMPTY" ends at once, "FAIL" is always
refused, "FLAKY" the first time, "LATER" the first five times; the first time "RAISE" is an exception, "SLOW" takes a
minute, "CRASH" kills the replica, and "LOST" takes its engine away from all rows for LOST_SECONDS. Where one replica is
sick, it does the same with "SICK-FLAKY", "SICK-RAISE" and "SICK-SLOW" every time, and the others never do. Asked for a
grade, it gives one from 1 to 9, or none. "TELL" has the whole request written beside the log.
"""

import asyncio
import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from raydistill.core.errors import EngineGoneError, EngineLostError
from raydistill.core.models import model_revision
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.engine.routing import ROUTER
from raydistill.renderers import load_tokenizer

LOST_SECONDS = 4.0  # longer than the waits between three attempts


@serve.deployment(name="engine", ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256, health_check_period_s=1)
class HashTeacher:
    def __init__(self, model_dir: str, log_path: str, delay_seconds: float, one_is_sick: bool = False) -> None:
        self._model_dir = model_dir
        self._tokenizer = load_tokenizer(model_dir)
        self._log = Path(log_path)
        self._delay_seconds = delay_seconds
        self._is_sick = one_is_sick and _is_first(Path(f"{log_path}.sick"))
        self._is_back_at = 0.0

    async def info(self) -> dict:
        return {"model_id": self._model_dir, "revision": model_revision(self._model_dir), "max_model_len": 640}

    async def generate(self, rows: list[TokenRequest], after: str | None = None) -> list[TokenResult]:
        return list(await asyncio.gather(*(self._answer(row) for row in rows)))

    def _count(self, text: str) -> int:
        """Write one line for each row asked, and return how often this prompt was asked before."""
        marker = hashlib.sha256(text.encode()).hexdigest()
        known = self._log.read_text().split() if self._log.exists() else []
        with self._log.open("a") as log:
            log.write(marker + "\n")
        return known.count(marker)

    async def _answer(self, row: TokenRequest) -> TokenResult:
        text = self._tokenizer.decode(row.tokens)
        asked = self._count(text)
        if "TELL" in text:
            with self._log.with_suffix(".told").open("a") as told:
                told.write(json.dumps(dataclasses.asdict(row)) + "\n")
        await asyncio.sleep(self._delay_seconds)
        if "CRASH" in text and not asked:
            os._exit(1)
        if "LOST" in text and not asked:
            self._is_back_at = time.monotonic() + LOST_SECONDS
            raise EngineLostError("the engine died")
        if time.monotonic() < self._is_back_at:
            raise EngineGoneError("the engine is gone")
        is_faulty = self._is_sick if "SICK" in text else not asked
        if "RAISE" in text and is_faulty:
            raise RuntimeError("out of order")
        if "SLOW" in text and is_faulty:
            await asyncio.sleep(60)
        if "FAIL" in text or ("FLAKY" in text and is_faulty) or ("LATER" in text and asked < 5):
            return TokenResult([], [], "error", Usage(len(row.tokens), 0, 0), error="ValueError: refused")
        answer = hash_answer(row)
        if "Score: N" in text:  # it is asked to grade
            score = int(answer, 16) % 10
            answer = f"Score: {score}" if score else "hm"
        body = [] if "EMPTY" in text else self._tokenizer.encode(answer, add_special_tokens=False)
        if "TRUNCATE" in text:
            body = (body * row.max_tokens)[: row.max_tokens]
            return TokenResult(body, [0.0] * len(body), "length", Usage(len(row.tokens), 0, len(body)))
        tokens = [*body, row.stop_token_ids[0]]
        result = TokenResult(tokens, [-0.5] * len(tokens), "stop", Usage(len(row.tokens), 3, len(tokens)))
        return result if row.top_logprobs is None else _add_top(result, row.top_logprobs)


def _add_top(result: TokenResult, top: int) -> TokenResult:
    """Return the result with itself and the ids behind it as the most likely tokens."""
    ids = np.asarray(result.tokens, dtype=np.int32)[:, None] + np.arange(top, dtype=np.int32)
    return dataclasses.replace(result, top_ids=ids, top_logprobs=(-0.5 - np.zeros_like(ids)).astype(np.float16))


def hash_answer(row: TokenRequest) -> str:
    """Return the text of the answer to a request without a word that chooses a fault."""
    return hashlib.sha256(f"{row.tokens} {row.seed}".encode()).hexdigest()[:12]


def _is_first(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def start(
    model_dir: str,
    log_path: str,
    delay_seconds: float = 0.0,
    num_replicas: int | Literal["auto"] = 1,
    one_is_sick: bool = False,
    name: str = "hash",
    **options: Any,
) -> DeploymentHandle:
    """Start it, with other options of its deployment perhaps, and return the handle of its engine."""
    serve.start(http_options={"location": "NoServer"})
    router = RequestRouterConfig.model_validate({"request_router_class": ROUTER})
    teacher = HashTeacher.options(num_replicas=num_replicas, request_router_config=router, **options)
    return serve.run(teacher.bind(model_dir, log_path, delay_seconds, one_is_sick), name=name, route_prefix=None)
