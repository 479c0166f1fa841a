"""The two clients a user holds: a service, and one of its models."""

import asyncio
import itertools
import os
import threading
import weakref
from collections.abc import Coroutine, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from raydistill.client.sampling import Sampler
from raydistill.client.transport import Transport, check_base_url
from raydistill.core.errors import ConfigError, ServiceError
from raydistill.core.keys import check_key, read_key
from raydistill.core.models import resolve_model
from raydistill.core.uris import parse_model_path
from raydistill.renderers.tokenizer import load_tokenizer
from raydistill.types import ModelInput, SampleResponse, SamplingParams

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
SDK_VERSION = "raydistill/0.1.0"
_MAX_CONCURRENT_REQUESTS = 64  # where the server names no limit of its own

Result = TypeVar("Result")


class _LoopThread:
    """An event loop in a daemon thread, so that `sample` needs no event loop of the caller's."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="raydistill-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> "Future[Result]":
        if not self._thread.is_alive():
            coroutine.close()
            raise ServiceError("this client is closed. Make a new ServiceClient.")
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            if threading.current_thread() is not self._thread:
                self._thread.join(timeout=5)


class ServiceClient:
    """A running service. Close it, use it in `with`, or leave it to the garbage collector."""

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        """Take the service's address and key; nothing is sent yet.

        Args:
            base_url: None reads RAYDISTILL_BASE_URL, and without it means http://127.0.0.1:8000.
            api_key: None reads RAYDISTILL_API_KEY; without it no key is sent.

        Raises:
            ConfigError: the address is none, or the key cannot be sent in a header.
        """
        self.base_url = check_base_url(base_url or os.environ.get("RAYDISTILL_BASE_URL") or DEFAULT_BASE_URL)
        key = check_key(api_key, "api_key") if api_key else read_key()
        self._thread = _LoopThread()
        self._transport = Transport(self.base_url, key)
        self._session_numbers = itertools.count()
        self._session: tuple[str, asyncio.Semaphore] | None = None
        self._opening = asyncio.Lock()
        self._finalizer = weakref.finalize(self, self._thread.stop)

    def create_sampling_client(self, model_path: str | None = None, base_model: str | None = None) -> "SamplingClient":
        """Return a client of one model.

        Args:
            model_path: `raydistill://NAME/ALIAS`, `raydistill://NAME/v0001` or `NAME` (its alias `final`).
            base_model: the served base model's name, instead of a distilled one.

        Raises:
            ConfigError: neither, both, or a path of another form.
            NotFoundError: the service does not have it; the message names what it has.
            ServiceError: the service does not answer, or refuses the key.
        """
        if (model_path is None) == (base_model is None):
            raise ConfigError("create_sampling_client: give model_path or base_model, one of the two.")
        if model_path is not None:
            parse_model_path(model_path)
        return self._thread.submit(self._open(model_path, base_model)).result()

    async def _open(self, model_path: str | None, base_model: str | None) -> "SamplingClient":
        session_id, limit = await self._ensure_session()
        wanted = {"model_path": model_path, "base_model": base_model}
        answer = await self._transport.request_json(
            "POST",
            "/api/v1/create_sampling_session",
            {
                "session_id": session_id,
                "sampling_session_seq_id": next(self._session_numbers),
                **{key: value for key, value in wanted.items() if value is not None},
            },
        )
        sampler_id = _text(answer, "sampling_session_id")
        facts = await self._transport.request_json("GET", f"/api/v1/samplers/{sampler_id}")
        sampler = Sampler(self._transport, sampler_id, limit)
        return SamplingClient(self, sampler, _text(facts, "base_model"))

    async def _ensure_session(self) -> tuple[str, asyncio.Semaphore]:
        """Return the session's id and the limit of requests in flight; both are asked for once."""
        async with self._opening:
            if self._session is None:
                hello = {"sdk_version": SDK_VERSION}
                flags = await self._transport.request_json("POST", "/api/v1/client/config", hello)
                answer = await self._transport.request_json("POST", "/api/v1/create_session", {"tags": [], **hello})
                in_flight = flags.get("sample_max_concurrent_requests")
                if not isinstance(in_flight, int) or in_flight < 1:
                    in_flight = _MAX_CONCURRENT_REQUESTS
                self._session = (_text(answer, "session_id"), asyncio.Semaphore(in_flight))
            return self._session

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run a coroutine beside this client's connections; returns its future."""
        return self._thread.submit(coroutine)

    def close(self) -> None:
        """Close the connections; requests in flight are given up (their futures are cancelled)."""
        if self._finalizer.alive:
            self._thread.submit(self._give_up()).result(timeout=10)
            self._finalizer()

    async def _give_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._transport.close()

    def __enter__(self) -> "ServiceClient":
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()


class SamplingClient:
    """One model of a service: made by `ServiceClient.create_sampling_client`."""

    def __init__(self, service: ServiceClient, sampler: Sampler, base_model: str) -> None:
        """Take what `create_sampling_client` has asked of the service."""
        self.base_model = base_model
        self._service = service
        self._sampler = sampler
        self._tokenizer: Any = None

    def get_tokenizer(self) -> Any:
        """Return the model's tokenizer: of its base model, which must be a folder here or a name this machine reaches.

        Raises:
            NotFoundError: the base model named by the service is not on this machine and not to be had.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(resolve_model(self.base_model, weights=False))
        return self._tokenizer

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int = 1,
        sampling_params: SamplingParams | None = None,
    ) -> "Future[SampleResponse]":
        """Return a future of completions: `.result(timeout_seconds)` waits for them.

        Args:
            prompt: token ids; special tokens and template are the caller's (see `raydistill.renderers`).
            num_samples: how many completions.
            sampling_params: None means temperature 1, ending at the end-of-sequence token.

        Raises:
            ConfigError: (from the future too) the prompt is empty, or the server refuses the parameters.
            ServiceError: (from the future) the service failed.
        """
        if prompt.length == 0 or num_samples < 1:
            raise ConfigError(
                f"sample: {prompt.length} prompt tokens and {num_samples} samples; both must be at least 1."
            )
        return self._service.submit(self._sample(prompt, num_samples, sampling_params or SamplingParams()))

    async def _sample(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> SampleResponse:
        """Hold on to this client, and so to the connections, until the answer is there."""
        return await self._sampler.sample(prompt, num_samples, params)

    async def sample_async(
        self,
        prompt: ModelInput,
        num_samples: int = 1,
        sampling_params: SamplingParams | None = None,
    ) -> "PendingSample":
        """Return what can be awaited (again and again) for the completions; see `sample`."""
        return PendingSample(self.sample(prompt, num_samples, sampling_params))


class PendingSample:
    """A sample on its way: `await` it, as often as you like, or ask for its `.result()`."""

    def __init__(self, future: "Future[SampleResponse]") -> None:
        """Take the future of `SamplingClient.sample`."""
        self.future = future

    def __await__(self) -> Generator[Any, None, SampleResponse]:
        """Wait without blocking the event loop; a wait that is cancelled leaves the sample to other waits."""
        return asyncio.shield(asyncio.wrap_future(self.future)).__await__()

    def result(self, timeout: float | None = None) -> SampleResponse:
        """Wait, blocking, at most `timeout` seconds."""
        return self.future.result(timeout)


def _text(answer: dict[str, Any], key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str) or not value:
        raise ServiceError(f"the server's answer has no {key} (it has {', '.join(answer) or 'nothing'}).")
    return value
