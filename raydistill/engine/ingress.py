"""The front of an application: the OpenAI chat route, the token-level routes, `/status`; no other route."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from raydistill.core.errors import ConfigError, NotFoundError
from raydistill.core.keys import VARIABLE, hash_key, key_matches
from raydistill.core.prompts import message_faults
from raydistill.core.records import TokenRequest, TokenResult
from raydistill.core.uris import is_loopback
from raydistill.core.wire import encode_sample_response
from raydistill.engine import sampling
from raydistill.engine.status import ask_replicas, merge_statuses
from raydistill.types import SampledSequence

MODEL_HEADER = "x-raydistill-model"
MAX_IN_FLIGHT = 4000  # long polls occupy slots; with Serve's default of 5 they starve everything else

app = FastAPI(title="raydistill", docs_url=None, redoc_url=None, openapi_url=None)
app.state.key_hash = None  # set by make_ingress; Serve freezes the app with it and sends both to the replica


class ChatRequest(BaseModel):
    """The OpenAI chat fields that are known here; any other is refused by name."""

    model_config = ConfigDict(extra="forbid")

    model: str = ""
    messages: list[dict[str, str]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    user: str | None = None

    @field_validator("messages")
    @classmethod
    def _messages_are_whole(cls, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """Refuse what the engine would render as an empty or unknown turn."""
        faults = message_faults(messages)
        if faults:
            raise ValueError("; ".join(faults))
        return messages


@app.middleware("http")
async def check_key(request: Request, call_next: Any) -> Response:
    """Refuse a request without the right key, on every route, where the application has one."""
    key_hash = request.app.state.key_hash
    if key_hash is not None and not any(key_matches(given, key_hash) for given in _given_keys(request)):
        detail = "wrong or missing API key (x-api-key or Authorization: Bearer)"
        return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})
    return await call_next(request)


def _given_keys(request: Request) -> list[bytes]:
    """Return the keys that a request carries, as the bytes that came in: headers need not be text."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [request.headers.get("x-api-key", "").encode("latin-1"), bearer.encode("latin-1")]


def check_front(has_key: bool) -> None:
    """Refuse a front that other machines can reach and nothing protects.

    Asks Serve's controller, since the proxies listen where `http_options.host` says, not where an application says.

    Raises:
        ConfigError: Serve listens on a non-loopback address, and there is no key.
    """
    if has_key:
        return
    client = _get_global_client(raise_if_no_controller_running=False)
    host = client.http_config.host if client is not None else None
    if host is not None and not is_loopback(host):
        raise ConfigError(
            f"Serve listens on {host}, where other machines reach it, and there is no key. Set {VARIABLE} where the "
            "application is built, or set http_options.host to 127.0.0.1."
        )


@app.exception_handler(NotFoundError)
async def not_found(_request: Request, error: NotFoundError) -> Response:
    """Answer 404 with the message, which names what is known."""
    return JSONResponse({"detail": str(error.args[0])}, 404)


@app.exception_handler(RayActorError)
async def engine_gone(_request: Request, _error: RayActorError) -> Response:
    """Answer 503: the replica died under the request; another will take its place."""
    return JSONResponse({"detail": "the engine replica was lost; try again"}, 503, {"Retry-After": "5"})


class Ingress:
    """One process that speaks HTTP and hands rows to the engine's replicas."""

    def __init__(self, engine: DeploymentHandle, has_key: bool = False) -> None:
        """Take the engine's handle, and whether requests have to carry a key; see `check_front`."""
        check_front(has_key)
        self._engine = engine
        self._futures = sampling.Futures(self._generate)
        self._known: dict[str, Any] | None = None

    async def _generate(self, rows: list[TokenRequest]) -> list[TokenResult]:
        return await self._engine.generate.remote(rows)

    async def _info(self) -> dict[str, Any]:
        known = self._known
        if known is None:
            known = self._known = await self._engine.info.remote()
        return known

    async def _resolve_name(self, model: str) -> str:
        return await self._engine.resolve_name.remote(model)

    @app.get("/healthz")
    @app.get("/api/v1/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answer that the front is up."""
        return {"status": "ok"}

    @app.get("/status")
    async def status(self) -> dict[str, Any]:
        """Answer what every replica serves: base model, aliases with their versions, refused versions."""
        statuses = await ask_replicas(self._engine)
        if not statuses:
            raise HTTPException(503, "no replica answers; try again", {"Retry-After": "5"})
        return merge_statuses(statuses)

    @app.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """Answer the names that the OpenAI route takes."""
        names = (await self._engine.status.remote())["models"]
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "raydistill"} for name in names]}

    @app.post("/v1/chat/completions")
    async def chat(self, body: ChatRequest) -> Response:
        """Answer a chat in OpenAI's form, streamed or whole; `model` in the answer is the exact version."""
        fields = body.model_dump(exclude_none=True, exclude={"user"})
        parts: Any = self._engine.options(stream=True).answer_chat.remote(fields)
        first = await anext(aiter(parts))
        if isinstance(first, dict):
            return _chat_response(first)
        return StreamingResponse(_events(first, parts), media_type="text/event-stream")

    @app.post("/api/v1/client/config")
    async def client_config(self) -> dict[str, Any]:
        """Answer the client's settings: how many samples it may have in flight."""
        return {"sample_max_concurrent_requests": 256}

    @app.post("/api/v1/client/dynamic_config")
    async def dynamic_config(self) -> dict[str, Any]:
        """Answer that the settings do not change."""
        return {"sample_cancel_enabled": True}

    @app.post("/api/v1/create_session")
    async def create_session(self, _body: sampling.CreateSession) -> dict[str, str]:
        """Answer a session; nothing is kept of it."""
        return {"session_id": sampling.encode_session("")}

    @app.post("/api/v1/create_sampling_session")
    async def create_sampling_session(self, body: sampling.CreateSamplingSession) -> dict[str, str]:
        """Answer a sampling session of a model path or of the base model; 404 names the known ones."""
        model = body.model_path or body.base_model or ""
        await self._resolve_name(model)
        return {"sampling_session_id": sampling.encode_session(model)}

    @app.get("/api/v1/samplers/{session_id}")
    async def sampler(self, session_id: str) -> dict[str, str]:
        """Answer what a sampling session samples, and where its tokenizer is."""
        model = sampling.decode_session(session_id)
        info = await self._info()
        answer = {"sampler_id": session_id, "base_model": sampling.client_path(info["model_dir"])}
        return answer | ({"model_path": model} if model else {})

    @app.post("/api/v1/asample")
    async def asample(self, body: sampling.Sample) -> Response:
        """Start samples and answer at once; the same (session, seq_id) again is the same request."""
        model = sampling.decode_session(body.sampling_session_id)
        info = await self._info()
        faults = sampling.sample_faults(body, info["vocab_size"], info["max_model_len"])
        if faults:
            return JSONResponse({"detail": "; ".join(faults)}, 400)
        request_id = f"{body.sampling_session_id}:{body.seq_id}"
        self._futures.submit(request_id, sampling.make_rows(body, model, info["max_model_len"]))
        ids = [f"{request_id}:{index}" for index in range(body.num_samples)]
        return JSONResponse({"request_id": request_id, "sample_sequence_ids": ids})

    @app.post("/api/v1/retrieve_future")
    async def retrieve_future(self, body: sampling.RetrieveFuture) -> Response:
        """Answer the samples (protobuf), `try_again`, an error, or 410 where the request is lost."""
        state, results = await self._futures.wait(body.request_id)
        if state == "lost":
            return JSONResponse({"detail": "the request is lost; submit it again"}, 410)
        if state == "pending":
            pending = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
            return JSONResponse(pending)
        errors = [result.error for result in results if result.error]
        if errors:
            return JSONResponse({"error": errors[0], "category": "user"})
        sequences = [
            SampledSequence(result.tokens, result.logprobs, "length" if result.finish_reason == "length" else "stop")
            for result in results
        ]
        headers = {MODEL_HEADER: ",".join(dict.fromkeys(result.model for result in results))}
        return Response(encode_sample_response(sequences), media_type="application/x-protobuf", headers=headers)

    @app.post("/api/v1/cancel_future", status_code=204)
    async def cancel_future(self, body: sampling.RetrieveFuture) -> None:
        """Free what an abandoned request holds."""
        self._futures.cancel(body.request_id)

    @app.post("/api/v1/session_heartbeat")
    async def heartbeat(self) -> dict[str, str]:
        """Answer that the session lives."""
        return {}

    @app.post("/api/v1/telemetry")
    async def telemetry(self) -> dict[str, str]:
        """Accept a client's telemetry and store none of it."""
        return {"status": "accepted"}

    @app.post("/api/v1/sessions/{_session_id}/finish", status_code=204)
    async def finish_session(self, _session_id: str) -> None:
        """Answer a client's goodbye."""

    @app.get("/api/v1/get_server_capabilities")
    async def capabilities(self) -> dict[str, Any]:
        """Answer the models that can be sampled."""
        info, status = await self._info(), await self._engine.status.remote()
        length = info["max_model_len"]
        return {"supported_models": [{"model_name": name, "max_context_length": length} for name in status["models"]]}


def _chat_response(body: dict[str, Any]) -> Response:
    """Return the whole answer, or the engine's error with its own status."""
    error = body.get("error")
    if error is not None:
        return JSONResponse({"error": error}, int(error.get("code") or 500))
    return JSONResponse(body, headers={MODEL_HEADER: body["model"]})


async def _events(first: str, rest: AsyncIterator[Any]) -> AsyncIterator[str]:
    """Yield server-sent events; an error in their middle is an event too."""
    yield first
    async for part in rest:
        yield part if isinstance(part, str) else f"data: {json.dumps(part)}\n\n"


def make_ingress(key: str | None) -> serve.Deployment:
    """Return the ingress deployment: one replica, since futures live in its process.

    The key's hash travels in the application, not the key in a runtime environment, which Ray writes into its logs.
    """
    app.state.key_hash = hash_key(key) if key is not None else None
    deploy: Any = serve.deployment(
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=MAX_IN_FLIGHT,
        ray_actor_options={"num_cpus": 1},
    )
    return deploy(serve.ingress(app)(Ingress))
