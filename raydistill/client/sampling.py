"""One sample from start to end: submit, poll, and submit again where a replica was lost."""

import asyncio
import itertools
import time
from typing import Any

from raydistill.client.transport import BACKOFF_SECONDS, Transport, retry_after
from raydistill.core.errors import ConfigError, ServiceError
from raydistill.core.wire import decode_sample_response
from raydistill.types import ModelInput, SampleResponse, SamplingParams

MODEL_HEADER = "x-raydistill-model"
MAX_SAMPLE_SECONDS = 1800.0  # from submission to the answer, resubmissions included
_PROTOBUF = "application/x-protobuf"
_LOST, _BUSY = 410, 429
_SHORTEST_POLL_SECONDS = 0.1  # a server that answers try_again at once is not asked more often than this


class Sampler:
    """A sampling session: numbers its requests and keeps at most so many in flight."""

    def __init__(self, transport: Transport, session_id: str, limit: asyncio.Semaphore) -> None:
        """Take a session that the service has opened, and the limit that all sessions of a client share."""
        self._transport = transport
        self._session_id = session_id
        self._limit = limit
        self._numbers = itertools.count()

    async def sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> SampleResponse:
        """Return the completions; a lost request (410) is submitted anew, a few times."""
        body = _sample_body(prompt, num_samples, params)
        async with self._limit:
            deadline = time.monotonic() + MAX_SAMPLE_SECONDS
            for wait_seconds in (*BACKOFF_SECONDS, None):
                answer = await self._submit_and_poll(body, deadline)
                if answer is not None:
                    return answer
                if wait_seconds is not None:
                    await asyncio.sleep(wait_seconds)
        raise ServiceError(
            f"the service lost this request {len(BACKOFF_SECONDS) + 1} times (its replicas die or restart). "
            "Look at the service's log."
        )

    async def _submit_and_poll(self, body: dict[str, Any], deadline: float) -> SampleResponse | None:
        """Return the completions, or None where the service has lost the request."""
        submission = {"sampling_session_id": self._session_id, "seq_id": next(self._numbers), **body}
        passed = frozenset({_LOST, _BUSY})
        answer = await self._transport.request("POST", "/api/v1/asample", submission, passed=passed)
        while answer.status_code == _BUSY and time.monotonic() < deadline:  # full is no fault: wait as long as it takes
            await asyncio.sleep(retry_after(answer, BACKOFF_SECONDS[0]))
            answer = await self._transport.request("POST", "/api/v1/asample", submission, passed=passed)
        if answer.status_code == _BUSY:
            raise ServiceError(f"no place within {MAX_SAMPLE_SECONDS:.0f} s. Ask for less at once, or add replicas.")
        if answer.status_code == _LOST:
            return None
        request_id = self._transport.parse_object(answer).get("request_id")
        if not isinstance(request_id, str):
            raise ServiceError("the server took the sample but gave it no request_id.")
        while time.monotonic() < deadline:
            asked = time.monotonic()
            answer = await self._transport.request(
                "POST",
                "/api/v1/retrieve_future",
                {"request_id": request_id, "allow_metadata_only": False},
                headers={"accept": _PROTOBUF},
                passed=frozenset({_LOST}),
            )
            if answer.status_code == _LOST:
                return None
            if answer.headers.get("content-type", "").startswith(_PROTOBUF):
                return decode_sample_response(answer.content, answer.headers.get(MODEL_HEADER, ""))
            _check_not_yet(self._transport.parse_object(answer))
            await asyncio.sleep(max(0.0, _SHORTEST_POLL_SECONDS - (time.monotonic() - asked)))
        raise ServiceError(f"no answer within {MAX_SAMPLE_SECONDS:.0f} s. Ask for fewer tokens, or add replicas.")


def _check_not_yet(content: dict[str, Any]) -> None:
    """Return where the answer says "ask again"; raise what it says otherwise."""
    if content.get("type") == "try_again":
        return
    if "error" in content:
        text = str(content["error"])
        if content.get("category") == "user":
            raise ConfigError(f"the server refused the sample: {text}")
        raise ServiceError(f"the sample failed: {text}")
    raise ServiceError(f"the server answered neither a result nor an error (keys {', '.join(content) or 'none'}).")


def _sample_body(prompt: ModelInput, num_samples: int, params: SamplingParams) -> dict[str, Any]:
    """Return the request's body without the session; None fields are left out, as the protocol wants."""
    fields = {
        "max_tokens": params.max_tokens,
        "seed": params.seed,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "stop": params.stop,
    }
    return {
        "num_samples": num_samples,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": prompt.to_ints()}]},
        "sampling_params": {key: value for key, value in fields.items() if value is not None},
        "prompt_logprobs": False,
        "topk_prompt_logprobs": 0,
    }
