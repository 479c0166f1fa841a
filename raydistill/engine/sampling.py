"""The token-level protocol behind the ingress: self-describing sessions, and futures that are polled.

Source: the wire protocol of the public `tinker` SDK; one surface for its clients and for ours.
"""

import asyncio
import base64
import contextlib
import json
import logging
import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raydistill.core.records import TokenRequest, TokenResult
from raydistill.engine.front import Front
from raydistill.engine.refusals import Refusal, internal

logger = logging.getLogger("ray.serve.raydistill")

KEEP_SECONDS = 300  # a reply may get lost, so a result stays readable after it was read
TOKEN_BYTES, RESULT_BYTES = 100, 2000  # of a result: an int, a float and their places in two lists; what is around them
HOLD_SECONDS = 25  # a long poll ends before the client's 45 s
MAX_STOPS = 64
_Token = Annotated[int, Field(ge=-(2**31), lt=2**31)]  # in the vocabulary or not is for `sample_faults` to say


class _Wire(BaseModel):
    """A request body; unknown fields are ignored, since clients add some with every release."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class CreateSession(_Wire):
    """POST /api/v1/create_session."""

    tags: list[str] = []


class CreateSamplingSession(_Wire):
    """POST /api/v1/create_sampling_session."""

    model_path: str | None = Field(None, max_length=1000)
    base_model: str | None = Field(None, max_length=1000)


class Chunk(_Wire):
    """A piece of a prompt; only text is known here."""

    type: str = "encoded_text"
    tokens: list[_Token] = []


class ModelInput(_Wire):
    """A prompt in pieces, which are concatenated."""

    chunks: list[Chunk]


class SamplingParams(_Wire):
    """How to sample; absent values are the protocol's defaults."""

    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    seed: int | None = Field(None, gt=-(2**62), lt=2**62)
    temperature: float = Field(1.0, ge=0, le=100)
    top_k: int = Field(-1, ge=-1, lt=2**31)
    top_p: float = Field(1.0, gt=0, le=1)
    stop: str | list[str] | list[_Token] | None = None


class Sample(_Wire):
    """POST /api/v1/asample."""

    sampling_session_id: str = Field(max_length=2000)
    seq_id: int = Field(ge=0, lt=2**63)
    num_samples: int = Field(1, ge=1, le=128)
    prompt: ModelInput
    sampling_params: SamplingParams = Field(default_factory=lambda: SamplingParams.model_validate({}))
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_alt_tokens_k: int = 0
    target_prompt_logprobs: Any = None


class RetrieveFuture(_Wire):
    """POST /api/v1/retrieve_future."""

    request_id: str = Field(max_length=3000)


def encode_session(model: str) -> str:
    """Return a sampling session's id, which says itself what it samples: no table, any replica can answer."""
    body = json.dumps({"model": model, "nonce": uuid.uuid4().hex}).encode()
    return "ss_" + base64.urlsafe_b64encode(body).decode().rstrip("=")


def decode_session(session_id: str) -> str:
    """Return the model that a sampling session samples.

    Raises:
        Refusal: 404, it is no id of ours.
    """
    try:
        text = session_id.removeprefix("ss_")
        model = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))["model"]
        model.encode()  # half a surrogate pair could not be answered
        if model:
            return model
        raise ValueError("a session_id, which samples nothing")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # anybody can forge one
        message = "unknown sampling_session_id: create a sampling session first"
        raise Refusal(404, "unknown_session", message, "sampling_session_id") from error


def sample_faults(sample: Sample, vocab_size: int, max_model_len: int, max_rows: int) -> list[tuple[str, str]]:
    """Return what cannot be done of a request, as (field, why); an empty list when all of it can."""
    faults = []
    kinds = {chunk.type[:50] for chunk in sample.prompt.chunks} - {"encoded_text"}
    if kinds:
        faults.append(("prompt", f"chunks of type {', '.join(sorted(kinds))} are not supported, only encoded_text"))
    tokens = [token for chunk in sample.prompt.chunks for token in chunk.tokens]
    if not tokens and not kinds:
        faults.append(("prompt", "at least one token is needed"))
    wrong = [token for token in tokens if not 0 <= token < vocab_size]
    if wrong:
        faults.append(("prompt", f"token id {wrong[0]} is not in 0..{vocab_size - 1}"))
    if len(tokens) >= max_model_len:
        faults.append(("prompt", f"{len(tokens)} tokens leave no room for an answer; the model takes {max_model_len}"))
    if sample.num_samples > max_rows:
        faults.append(("num_samples", f"this service takes {max_rows} at once"))
    unsupported = {
        "prompt_logprobs": sample.prompt_logprobs,
        "topk_prompt_logprobs": sample.topk_prompt_logprobs,
        "topk_sample_logprobs": sample.topk_sample_logprobs,
        "prompt_alt_tokens_k": sample.prompt_alt_tokens_k,
        "target_prompt_logprobs": sample.target_prompt_logprobs is not None,
    }
    faults += [(name, "not supported") for name, asked in unsupported.items() if asked]
    return faults + _stop_faults(sample.sampling_params.stop, vocab_size)


def _stop_faults(stop: str | list[str] | list[int] | None, vocab_size: int) -> list[tuple[str, str]]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS:
        return [("sampling_params.stop", f"{len(stops)} stops; at most {MAX_STOPS}")]
    if any(item == "" or (isinstance(item, int) and not 0 <= item < vocab_size) for item in stops):
        return [("sampling_params.stop", f"an empty text, or a token id that is not in 0..{vocab_size - 1}")]
    return []


def make_rows(sample: Sample, model: str, max_model_len: int) -> list[TokenRequest]:
    """Return one engine row for each sample asked."""
    params = sample.sampling_params
    tokens = [token for chunk in sample.prompt.chunks for token in chunk.tokens]
    room = max_model_len - len(tokens)
    stop = [params.stop] if isinstance(params.stop, str) else params.stop or []
    return [
        TokenRequest(
            tokens=tokens,
            model=model,
            max_tokens=min(params.max_tokens or room, room),
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=None if params.seed is None else params.seed + index,
            stop=[item for item in stop if isinstance(item, str)],
            stop_token_ids=[item for item in stop if isinstance(item, int)],
            ignore_eos=params.stop == [],
        )
        for index in range(sample.num_samples)
    ]


class Futures:
    """Requests in flight and their results, kept for a while so that a lost reply can be asked again.

    Attributes:
        max_bytes: of all results together; beyond it those go that were read longest ago, then the oldest.
    """

    max_bytes = 256 * 2**20

    def __init__(self, front: Front) -> None:
        """Take who asks the engine."""
        self._front = front
        self._tasks: dict[str, asyncio.Task[list[TokenResult]]] = {}
        # Of those that have ended, when they were last read or when they ended; the earliest first.
        self._read: dict[str, float] = {}
        self._unread: dict[str, float] = {}
        self._held_bytes = 0

    def submit(self, request_id: str, rows: list[TokenRequest], deadline: float) -> None:
        """Start a request; the same id again is the same request.

        Raises:
            Refusal: 429, there is no room for it now.
        """
        self._evict()
        if request_id in self._tasks:
            return
        places = contextlib.ExitStack()
        places.enter_context(self._front.admit(len(rows)))
        task = asyncio.ensure_future(self._front.generate(rows, deadline))
        task.add_done_callback(lambda _: places.close())
        task.add_done_callback(lambda _: self._end(request_id, task))
        self._tasks[request_id] = task

    async def wait(self, request_id: str) -> tuple[Literal["done", "pending", "lost"], list[TokenResult] | Refusal]:
        """Return the results or why there are none; "pending" after a long poll, "lost" where it is not known."""
        task = self._tasks.get(request_id)
        if task is None:
            return "lost", []
        done, _ = await asyncio.wait([task], timeout=HOLD_SECONDS)
        if not done:
            return "pending", []
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, asyncio.CancelledError) or (isinstance(error, Refusal) and error.code == "replica_lost"):
            self._forget(request_id)
            return "lost", []  # the engine or its replica is gone: the client submits again
        self._note_read(request_id)
        if error is None:
            return "done", task.result()
        if isinstance(error, Refusal):
            return "done", error
        logger.error("request %s failed", request_id, exc_info=error)
        return "done", internal()

    def cancel(self, request_id: str) -> None:
        """Stop a request whose caller has gone."""
        task = self._forget(request_id)
        if task is not None:
            task.cancel()

    def _end(self, request_id: str, task: asyncio.Task[list[TokenResult]]) -> None:
        if self._tasks.get(request_id) is task:
            self._unread[request_id] = time.monotonic()
            self._held_bytes += _size_bytes(task)
            self._evict()

    def _note_read(self, request_id: str) -> None:
        known = [kept.pop(request_id) for kept in (self._read, self._unread) if request_id in kept]
        if known:
            self._read[request_id] = time.monotonic()

    def _forget(self, request_id: str) -> asyncio.Task[list[TokenResult]] | None:
        task = self._tasks.pop(request_id, None)
        for kept in (self._read, self._unread):
            if task is not None and kept.pop(request_id, None) is not None:
                self._held_bytes -= _size_bytes(task)
        return task

    def _evict(self) -> None:
        """Forget what nobody has asked for in a while, and what is too much."""
        oldest = time.monotonic() - KEEP_SECONDS
        for kept in (self._read, self._unread):
            while kept and (self._held_bytes > self.max_bytes or next(iter(kept.values())) < oldest):
                self._forget(next(iter(kept)))


def _size_bytes(task: asyncio.Task[list[TokenResult]]) -> int:
    """Return about how much memory a request that has ended takes."""
    results = [] if task.cancelled() or task.exception() is not None else task.result()
    return RESULT_BYTES * max(1, len(results)) + sum(TOKEN_BYTES * len(result.tokens) for result in results)


def client_path(model_dir: str) -> str:
    """Return a model's folder so that SDKs which cut `/a/b` (two slashes) to `/a` leave it whole."""
    if model_dir.startswith("/") and model_dir.count("/") == 2:
        head, _, tail = model_dir.rpartition("/")
        return f"{head}/./{tail}"
    return model_dir
