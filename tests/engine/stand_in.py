"""A student's application without a model: an engine whose answers take as long, and fail, as the request says.

The last message of a chat, or the prompt's tokens, choose: "die FILE" ends the process the first time, "slow SECONDS
FILE" takes so long and writes into FILE how it ended, "gone FILE" finds the engine gone at the first replica that it
comes to, then and whenever it comes there again. Token rows say the same by number: 1 dies, 2 is slow, 3 is gone.
"""

import asyncio
import os
from pathlib import Path

from ray import serve
from ray.serve.config import RequestRouterConfig

from raydistill.core.errors import EngineLostError
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.engine.app import run_application
from raydistill.engine.args import deployment_options
from raydistill.engine.config import EngineConfig
from raydistill.engine.ingress import make_ingress
from raydistill.engine.routing import ROUTER


class StandIn:
    """What the front asks of a TokenServer."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    async def info(self, after: str | None = None) -> dict:
        return {"model_id": "m", "model_dir": "/m", "vocab_size": 256, "max_model_len": 384}

    async def status(self) -> dict:
        return {"replica": self._replica(), "base_model": "m", "models": ["m"], "pid": os.getpid()}

    async def resolve_name(self, model: str, after: str | None = None) -> str:
        return model

    def _replica(self) -> str:
        return serve.get_replica_context().replica_id.unique_id

    async def _work(self, text: str) -> None:
        if text.startswith("die"):
            marker = self._folder / text.split()[1]
            if not marker.exists():
                marker.write_text("died")
                os._exit(1)
        if text.startswith("gone"):
            marker = self._folder / text.split()[1]
            if not marker.exists():
                marker.write_text(self._replica())
            if marker.read_text() == self._replica():
                raise EngineLostError("the engine is gone")
        if text.startswith("slow"):
            _, seconds, name = text.split()
            try:
                await asyncio.sleep(float(seconds))
            except asyncio.CancelledError:
                (self._folder / name).write_text("cancelled")
                raise
            (self._folder / name).write_text("done")

    async def generate(self, rows: list[TokenRequest], after: str | None = None) -> list[TokenResult]:
        name = rows[0].tokens[-1]
        words = {1: f"die {name}", 2: f"slow 20 {name}", 3: f"gone {name}"}
        await self._work(words.get(rows[0].tokens[0], ""))
        return [TokenResult([7], [-0.5], "stop", Usage(1, 0, 1), self._replica()) for _ in rows]

    async def answer_chat(self, fields: dict, after: str | None = None):
        text = fields["messages"][-1]["content"]
        if not fields["stream"]:
            await self._work(text)
            yield {"model": self._replica(), "choices": [{"message": {"content": text}}]}
            return
        if text.startswith(("die", "gone")):
            await self._work(text)
        yield 'data: {"model": "m"}\n\n'
        await self._work(text)
        yield "data: [DONE]\n\n"


def start(name: str, folder: Path, **settings) -> str:
    """Start an application with these settings of an EngineConfig; return the route prefix that it answers below."""
    config = EngineConfig.model_validate(settings)
    options = deployment_options(config, drains=True)
    if config.autoscaling is not None:  # a test does not wait the half minute that Serve looks back
        options["autoscaling_config"] |= {"look_back_period_s": 1, "metrics_interval_s": 0.2}
    options["request_router_config"] = RequestRouterConfig.model_validate({"request_router_class": ROUTER})
    deployment = serve.deployment(name="engine", ray_actor_options={"num_cpus": 0.1}, **options)(StandIn)
    run_application(make_ingress(deployment.bind(str(folder)), None, config), name, f"/{name}", 60)
    return f"/{name}"
