"""The token-level routes, as the public `tinker` SDK and our own client speak them: see `sampling`."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from raydistill.core.records import TokenResult
from raydistill.core.wire import encode_sample_response
from raydistill.engine import sampling
from raydistill.engine.front import Front
from raydistill.engine.guards import TRACE, Trace
from raydistill.engine.openai_routes import MODEL_HEADER
from raydistill.engine.refusals import Refusal, from_engine, read_body
from raydistill.engine.status import describe_application
from raydistill.types import SampledSequence

MAX_IN_FLIGHT_OF_A_CLIENT = 256  # samples; the SDK's own default of 2000 would hold as many connections
_STATUS_OF_ERROR = {"unknown_model": 404, "refused": 400, "unavailable": 503}

router = APIRouter(prefix="/api/v1")


def _front(request: Request) -> Front:
    return request.app.state.front


def _futures(request: Request) -> sampling.Futures:
    return request.app.state.futures


def _trace(request: Request) -> Trace:
    return request.scope[TRACE]


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer that the front is up."""
    return {"status": "ok"}


@router.post("/client/config")
async def client_config(request: Request) -> dict[str, Any]:
    """Answer the client's settings: how many samples it may have in flight."""
    return {"sample_max_concurrent_requests": min(MAX_IN_FLIGHT_OF_A_CLIENT, _front(request).limits.max_rows)}


@router.post("/client/dynamic_config")
async def dynamic_config() -> dict[str, Any]:
    """Answer that the settings do not change."""
    return {"sample_cancel_enabled": True}


@router.post("/create_session")
async def create_session(request: Request) -> dict[str, str]:
    """Answer a session; nothing is kept of it."""
    read_body(sampling.CreateSession, _trace(request).body)
    return {"session_id": sampling.encode_session("")}


@router.post("/create_sampling_session")
async def create_sampling_session(request: Request) -> dict[str, str]:
    """Answer a sampling session of a model path or of the base model; 404 names the known ones."""
    body = read_body(sampling.CreateSamplingSession, _trace(request).body)
    model = body.model_path or body.base_model
    if not model:  # unknown fields are ignored here: a misspelt one must not be answered by the base model
        raise Refusal(422, "invalid_value", "give model_path or base_model: neither is there", "model_path")
    await _front(request).resolve_name(model, _trace(request).deadline)
    return {"sampling_session_id": sampling.encode_session(model)}


@router.get("/samplers/{session_id}")
async def sampler(request: Request, session_id: str) -> dict[str, str]:
    """Answer what a sampling session samples, and where its tokenizer is."""
    model = sampling.decode_session(session_id)
    info = await _front(request).info(_trace(request).deadline)
    base_model = sampling.client_path(info["model_dir"])
    return {"sampler_id": session_id, "base_model": base_model, "model_path": model}


@router.post("/asample")
async def asample(request: Request) -> Response:
    """Start samples and answer at once; the same (session, seq_id) again is the same request.

    Too many at once is 429 here, and never at `retrieve_future`, which clients ask again without a pause.
    """
    front, trace = _front(request), _trace(request)
    body = read_body(sampling.Sample, trace.body)
    model = sampling.decode_session(body.sampling_session_id)
    trace.model = model[:200]
    info = await front.info(trace.deadline)
    faults = sampling.sample_faults(body, info["vocab_size"], info["max_model_len"], front.limits.max_rows)
    if faults:
        raise Refusal(400, "invalid_value", "; ".join(f"{name}: {text}" for name, text in faults), faults[0][0])
    request_id = f"{body.sampling_session_id}:{body.seq_id}"
    _futures(request).submit(request_id, sampling.make_rows(body, model, info["max_model_len"]), trace.deadline)
    ids = [f"{request_id}:{index}" for index in range(body.num_samples)]
    return JSONResponse({"request_id": request_id, "sample_sequence_ids": ids})


@router.post("/retrieve_future")
async def retrieve_future(request: Request) -> Response:
    """Answer the samples (protobuf), `try_again`, an error, or 410 where the request is lost."""
    trace = _trace(request)
    body = read_body(sampling.RetrieveFuture, trace.body)
    state, results = await _futures(request).wait(body.request_id)
    if state == "lost":
        raise Refusal(410, "lost", "the request is lost; submit it again", "request_id")
    if state == "pending":
        return JSONResponse({"type": "try_again", "request_id": body.request_id, "queue_state": "active"})
    if isinstance(results, Refusal):
        return _failed(results, trace)
    failed = next((result for result in results if result.error), None)
    if failed is not None:
        return _failed(_refusal_of(failed), trace)
    sequences = [
        SampledSequence(result.tokens, result.logprobs, "length" if result.finish_reason == "length" else "stop")
        for result in results
    ]
    answered_by = ",".join(dict.fromkeys(result.model for result in results))
    trace.facts |= {"answered_by": answered_by, "completion_tokens": sum(len(result.tokens) for result in results)}
    data = encode_sample_response(sequences)
    return Response(data, media_type="application/x-protobuf", headers={MODEL_HEADER: answered_by})


def _refusal_of(result: TokenResult) -> Refusal:
    """Return why the engine did not answer a row; its text is shown where it is about the request."""
    message = (result.error or "").partition(": ")[2]
    return from_engine(_STATUS_OF_ERROR.get(result.error_code, 500), message)


def _failed(refusal: Refusal, trace: Trace) -> Response:
    """Return a failure in the protocol's own form: status 200, or SDKs would ask again without a pause."""
    trace.code = refusal.code
    category = "user" if refusal.status < 500 else "server"
    return JSONResponse({"error": refusal.message, "category": category, "code": refusal.code})


@router.post("/cancel_future", status_code=204)
async def cancel_future(request: Request) -> None:
    """Free what an abandoned request holds, in the engine too."""
    _futures(request).cancel(read_body(sampling.RetrieveFuture, _trace(request).body).request_id)


@router.post("/session_heartbeat")
async def heartbeat() -> dict[str, str]:
    """Answer that the session lives."""
    return {}


@router.post("/telemetry")
async def telemetry() -> dict[str, str]:
    """Accept a client's telemetry and store none of it."""
    return {"status": "accepted"}


@router.post("/sessions/{session_id}/finish", status_code=204)
async def finish_session(session_id: str) -> None:
    """Answer a client's goodbye."""


@router.get("/get_server_capabilities")
async def capabilities(request: Request) -> dict[str, Any]:
    """Answer the models that can be sampled."""
    front = _front(request)
    models = (await describe_application(front))["models"]
    length = (await front.info(_trace(request).deadline))["max_model_len"] if models else None  # it may sleep
    return {"supported_models": [{"model_name": name, "max_context_length": length} for name in models]}
