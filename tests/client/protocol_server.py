"""A small real server of the token-level protocol on a loopback socket, written from the protocol's description.

Its "model" answers a prompt with the prompt reversed, cut at max_tokens, and ends it with token 2, where `answer` names
no other. `faults` says what to answer instead, once each, by path.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from raydistill.core.wire import encode_sample_response
from raydistill.types import SampledSequence
from tests.loopback import serve_app

STOP = 2
VERSION = "analyst/v0001@0123456789ab"
KNOWN = {"analyst/final": "analyst/final", "raydistill://analyst/final": "analyst/final", "analyst": "analyst/final"}

Answer = Callable[[dict[str, Any], str], tuple[SampledSequence, str]]


def reverse_prompt(body: dict[str, Any], model: str) -> tuple[SampledSequence, str]:
    """Return the sequence that answers a request's body, and the exact version that answered, whatever the model."""
    prompt = [token for chunk in body["prompt"]["chunks"] for token in chunk["tokens"]]
    tokens = [*reversed(prompt), STOP]
    limit = body["sampling_params"].get("max_tokens", len(tokens))
    cut = tokens[:limit]
    return SampledSequence(cut, [-0.5] * len(cut), "stop" if len(cut) == len(tokens) else "length"), VERSION


@dataclass
class State:
    """What the server knows and has seen."""

    base_model: str
    known: dict[str, str] = field(default_factory=lambda: dict(KNOWN))  # model path asked for: name of the model
    answer: Answer = reverse_prompt
    api_key: str | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, list[Response]] = field(default_factory=lambda: defaultdict(list))
    delay_seconds: float = 0.0
    requests: list[tuple[str, Any]] = field(default_factory=list)
    samplers: dict[str, str] = field(default_factory=dict)  # sampling session: name of its model, "" the base
    samples: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0

    def bodies(self, name: str) -> list[Any]:
        """Return the bodies that one endpoint has received."""
        return [body for path, body in self.requests if path == f"/api/v1/{name}"]


def make_app(state: State) -> FastAPI:
    """Return the application."""
    app = FastAPI()

    @app.middleware("http")
    async def check_and_count(request: Request, call_next):
        if state.api_key is not None and request.headers.get("x-api-key") != state.api_key:
            return JSONResponse({"detail": "no such key"}, 401)
        body = await request.json() if request.method == "POST" else None
        state.requests.append((request.url.path, body))
        if state.faults[request.url.path]:
            return state.faults[request.url.path].pop(0)
        return await call_next(request)

    _add_session_routes(app, state)
    _add_sample_routes(app, state)
    return app


def _add_session_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/client/config")
    def client_config():
        return state.flags

    @app.post("/api/v1/create_session")
    def create_session():
        return {"session_id": "s1"}

    @app.post("/api/v1/create_sampling_session")
    async def create_sampling_session(request: Request):
        body = await request.json()
        wanted = body.get("model_path") or body["base_model"]
        known = {state.base_model: "", **state.known}
        if wanted not in known:
            raise HTTPException(404, f"{wanted} is not served; known are {', '.join(state.known)}")
        session_id = f"ss{len(state.samplers)}"
        state.samplers[session_id] = known[wanted]
        return {"sampling_session_id": session_id}

    @app.get("/api/v1/samplers/{sampler_id}")
    def get_sampler(sampler_id: str):
        return {"sampler_id": sampler_id, "base_model": state.base_model}


def _add_sample_routes(app: FastAPI, state: State) -> None:
    @app.post("/api/v1/asample")
    async def asample(request: Request):
        body = await request.json()
        request_id = f"{body['sampling_session_id']}:{body['seq_id']}"
        if request_id not in state.samples:
            state.samples[request_id] = (time.monotonic() + state.delay_seconds, body)
            state.in_flight += 1
            state.most_in_flight = max(state.most_in_flight, state.in_flight)
        return {"request_id": request_id, "sample_sequence_ids": [str(i) for i in range(body["num_samples"])]}

    @app.post("/api/v1/retrieve_future")
    async def retrieve_future(request: Request):
        if request.headers["accept"] != "application/x-protobuf":
            return JSONResponse({"detail": "protobuf is the only form"}, 400)
        request_id = (await request.json())["request_id"]
        if request_id not in state.samples:
            return JSONResponse({"detail": "lost"}, 410)
        ready, body = state.samples[request_id]
        if time.monotonic() < ready:
            return {"type": "try_again", "request_id": request_id, "queue_state": "active"}
        state.in_flight -= 1
        sequence, version = state.answer(body, state.samplers[body["sampling_session_id"]])
        data = encode_sample_response([sequence] * body["num_samples"])
        return Response(data, media_type="application/x-protobuf", headers={"x-raydistill-model": version})


def serve(state: State) -> AbstractContextManager[str]:
    """Run the server in a thread; the context gives its base URL."""
    return serve_app(make_app(state))
