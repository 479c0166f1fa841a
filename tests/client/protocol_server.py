"""A small real server of the token-level protocol on a loopback socket, written from the protocol's description.

Its "model" answers a prompt with the prompt reversed, cut at max_tokens, and ends it with token 2.
`faults` says what to answer instead, once each, by path.
"""

import contextlib
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from raydistill.core.wire import encode_sample_response
from raydistill.types import SampledSequence

STOP = 2
VERSION = "analyst/v0001@0123456789ab"
KNOWN = {"analyst/final": "analyst/final", "raydistill://analyst/final": "analyst/final", "analyst": "analyst/final"}


@dataclass
class State:
    """What the server knows and has seen."""

    base_model: str
    api_key: str | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, list[Response]] = field(default_factory=lambda: defaultdict(list))
    delay_seconds: float = 0.0
    requests: list[tuple[str, Any]] = field(default_factory=list)
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
        if body.get("base_model") == state.base_model:
            return {"sampling_session_id": "ss_base"}
        if body.get("model_path") not in KNOWN:
            raise HTTPException(404, f"{body.get('model_path')} is not served; known are analyst/final")
        return {"sampling_session_id": "ss_analyst"}

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
        data = encode_sample_response([_complete(body)] * body["num_samples"])
        return Response(data, media_type="application/x-protobuf", headers={"x-raydistill-model": VERSION})


def _complete(body: dict[str, Any]) -> SampledSequence:
    prompt = [token for chunk in body["prompt"]["chunks"] for token in chunk["tokens"]]
    tokens = [*reversed(prompt), STOP]
    limit = body["sampling_params"].get("max_tokens", len(tokens))
    cut = tokens[:limit]
    return SampledSequence(cut, [-0.5] * len(cut), "stop" if len(cut) == len(tokens) else "length")


@contextlib.contextmanager
def serve(state: State):
    """Run the server in a thread; yields its base URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(state), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
