"""An engine's handle that answers in process, for tests of the front alone: no Ray, no vllm."""

import asyncio
from types import SimpleNamespace

import httpx

from raydistill.core.errors import NotFoundError
from raydistill.core.records import TokenResult, Usage
from raydistill.engine.front import Front, Limits
from raydistill.engine.ingress import make_app

VERSION = "tiny/v0001@0123456789ab"
LIMITS = Limits(key_hash=None, max_body_bytes=2**20, max_rows=8, timeout_seconds=5, retry_after_seconds=3)


class Answer:
    """What a handle's call returns: awaited or iterated, and noted where it was given up."""

    _request_metadata = SimpleNamespace(internal_request_id="the-request")

    def __init__(self, engine, coroutine=None, parts=None):
        self.engine, self.coroutine, self.parts = engine, coroutine, parts

    def __await__(self):
        return self.coroutine.__await__()

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.parts)

    def cancel(self):
        self.engine.cancelled += 1


class FakeEngine:
    """Answers chats and rows; `faults` are raised first, one a call; `wait_seconds` is how long an answer takes."""

    def __init__(self, faults=(), wait_seconds=0.0, parts=None):
        self.faults, self.wait_seconds = list(faults), wait_seconds
        self.parts = parts
        self.cancelled = 0
        self.asked = []
        for name in ("info", "status", "resolve_name", "generate", "answer_chat"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def options(self, stream):
        assert stream
        return self

    def broadcast(self, method):
        assert method == "status"
        return SimpleNamespace(results_async=self._statuses)

    async def _statuses(self, timeout_s, return_exceptions):
        return [await self._status_now()]

    async def _status_now(self):
        return {"replica": "r1", "base_model": "base", "models": ["base", "tiny/final"], "aliases": {}}

    def _status(self):
        return Answer(self, self._status_now())

    def _info(self, after=None):
        return Answer(self, self._info_now())

    async def _info_now(self):
        return {"model_id": "base", "model_dir": "/models/base", "vocab_size": 256, "max_model_len": 384}

    def _resolve_name(self, model, after=None):
        return Answer(self, self._resolve_now(model))

    async def _resolve_now(self, model):
        if model not in ("", "base", "tiny", "tiny/final"):
            raise NotFoundError(f"{model!r} is not served here. Known: tiny/final.")
        return VERSION

    async def _work(self):
        if self.faults:
            raise self.faults.pop(0)
        await asyncio.sleep(self.wait_seconds)

    def _generate(self, rows, after=None):
        self.asked.append(rows)
        return Answer(self, self._generate_now(rows))

    async def _generate_now(self, rows):
        await self._work()
        return [TokenResult([7, 2], [-0.5, -0.1], "stop", Usage(len(row.tokens), 0, 2), VERSION) for row in rows]

    def _answer_chat(self, fields, after=None):
        self.asked.append(fields)
        return Answer(self, parts=self._parts(fields))

    async def _parts(self, fields):
        await self._work()
        if self.parts is not None:
            for part in self.parts:
                if isinstance(part, Exception):
                    raise part
                yield part
        elif fields["stream"]:
            yield 'data: {"choices": [], "model": "m"}\n\n'
            yield "data: [DONE]\n\n"
        else:
            yield {"model": VERSION, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def make_front(engine, **limits):
    """Return the application in front of a fake engine."""
    values = {name: getattr(LIMITS, name) for name in LIMITS.__dataclass_fields__} | limits
    return make_app(Front(engine, Limits(**values)))


def run(engine, test, **limits):
    """Run a coroutine function with a client of the front, in one event loop."""

    async def main():
        app = make_front(engine, **limits)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://front", timeout=20) as client:
            client.futures = app.state.futures
            return await test(client, app.state.front)

    return asyncio.run(main())
