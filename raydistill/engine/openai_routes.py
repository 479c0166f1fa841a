"""The OpenAI routes: chat, streamed or whole, and the list of models. A field that is not known is refused by name."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from starlette.responses import JSONResponse, Response, StreamingResponse

from raydistill.core.prompts import message_faults
from raydistill.engine.front import Front
from raydistill.engine.guards import TRACE, Trace
from raydistill.engine.refusals import Refusal, from_engine, read_body
from raydistill.engine.status import describe_application

MODEL_HEADER = "x-raydistill-model"
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20  # the engine's max_logprobs; see args.py
MAX_STOPS = 16
SEED = 2**63 - 1
INTEGER = 2**31 - 1

router = APIRouter()


class StreamOptions(BaseModel):
    """What a stream tells besides the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The OpenAI chat fields that are known here; any other is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=1000)
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=INTEGER)
    max_completion_tokens: int | None = Field(None, ge=1, le=INTEGER)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-SEED, le=SEED)
    stop: str | list[str] | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    user: str | None = Field(None, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        """Take a known field that is null as one that is not there, as OpenAI's own service does."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}

    @field_validator("messages")
    @classmethod
    def _messages_are_whole(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Refuse what the engine would render as an empty or unknown turn, and what is no text."""
        parts = [index for index, message in enumerate(messages) if isinstance(message.get("content"), list)]
        if parts:
            raise ValueError(
                f"message {parts[0]} has a list as content: parts (images, audio, files) are not supported, only text"
            )
        faults = message_faults(messages)
        if faults:
            raise ValueError("; ".join(faults))
        return messages

    @field_validator("stop")
    @classmethod
    def _stops_are_texts(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > MAX_STOPS or not all(texts):
            raise ValueError(f"at most {MAX_STOPS} texts, none of them empty")
        return stop

    @model_validator(mode="after")
    def _options_have_what_they_are_about(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise Refusal(422, "invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise Refusal(422, "invalid_value", "stream_options needs stream: true", "stream_options")
        return self


def _front(request: Request) -> Front:
    return request.app.state.front


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """Answer the names that the OpenAI route takes; none while the engine sleeps, which this does not wake."""
    names = (await describe_application(_front(request)))["models"]
    data = [{"id": name, "object": "model", "owned_by": "raydistill"} for name in names]
    return JSONResponse({"object": "list", "data": data})


@router.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """Answer a chat in OpenAI's form, streamed or whole; `model` in the answer is the exact version."""
    front, trace = _front(request), request.scope[TRACE]
    body = read_body(ChatRequest, trace.body)
    trace.model = body.model[:200]
    if body.n > front.limits.max_rows:
        raise Refusal(422, "invalid_value", f"n: this service takes {front.limits.max_rows} at once", "n")
    length = (await front.info(trace.deadline))["max_model_len"]
    for name in ("max_tokens", "max_completion_tokens"):
        if (getattr(body, name) or 0) > length:
            raise Refusal(422, "invalid_value", f"{name}: the model takes {length} tokens in all", name)
    fields = body.model_dump(exclude_none=True, exclude={"user"}) | {"request_id": trace.request_id}
    parts: Any = _admitted(front, body.n, fields, trace.deadline)
    try:
        first = await anext(parts)
    except StopAsyncIteration as error:
        raise Refusal(503, "replica_lost", "the replica ended the request without an answer; try again") from error
    if isinstance(first, dict):
        await parts.aclose()
        return _whole(first, trace)
    exact = _version_of(first)
    trace.facts["answered_by"] = exact
    events = _events(first, parts, trace)
    return StreamingResponse(events, media_type="text/event-stream", headers={MODEL_HEADER: exact})


def _version_of(event: str) -> str:
    """Return the exact version that an answer's first event names; the others name the same."""
    return json.loads(event.partition("\n\n")[0].removeprefix("data: "))["model"]


async def _admitted(front: Front, rows: int, fields: dict[str, Any], deadline: float) -> Any:
    """Yield the parts of an answer, holding its places until the last one."""
    with front.admit(rows):
        parts: Any = front.stream_chat(fields, deadline)
        try:
            async for part in parts:
                yield part
        finally:
            await parts.aclose()


def _whole(body: dict[str, Any], trace: Trace) -> Response:
    """Return the whole answer, or raise the engine's refusal with its own status."""
    error = body.get("error")
    if error is not None:
        raise _refusal(error)
    trace.facts |= {"answered_by": body["model"], **(body.get("usage") or {})}
    return JSONResponse(body, headers={MODEL_HEADER: body["model"]})


def _refusal(error: dict[str, Any]) -> Refusal:
    return from_engine(int(error.get("code") or 500), str(error.get("message")), error.get("param"))


async def _events(first: str, rest: Any, trace: Trace) -> AsyncIterator[str]:
    """Yield server-sent events; an error in their middle is an event too, the last one."""
    try:
        yield first
        async for part in rest:
            if isinstance(part, dict):
                raise _refusal(part["error"])
            yield part
    except Refusal as refusal:
        trace.code = refusal.code
        yield refusal.event()
    finally:
        await rest.aclose()
