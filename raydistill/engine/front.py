"""How the front asks the engine: so many rows at once, within a time, and once again where a replica died."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from raydistill.core.errors import EngineLostError, NotFoundError, ServiceError
from raydistill.core.records import TokenRequest, TokenResult
from raydistill.engine import metrics
from raydistill.engine.refusals import overloaded, replica_lost, timed_out, unavailable, unknown_model
from raydistill.engine.routing import AFTER

logger = logging.getLogger(__name__)

LOST = (RayActorError, EngineLostError, DeploymentUnavailableError)  # the replica is gone, or its engine
TRIES = 2  # a request whose replica died before the first token is asked once more, at another where there is one


@dataclass(frozen=True)
class Limits:
    """What the front takes.

    Attributes:
        key_hash: of the key that requests have to carry; None without one.
        max_body_bytes: of one request.
        max_rows: at all replicas and waiting for one; a row more is refused at once.
        timeout_seconds: for one request, from its arrival to its last token.
        retry_after_seconds: that a refused one is told to wait.
        cors_origins: whose pages may read the answers; none by default.
        may_sleep: whether there may be no replica at all.
    """

    key_hash: str | None
    max_body_bytes: int
    max_rows: int
    timeout_seconds: float
    retry_after_seconds: int
    cors_origins: tuple[str, ...] = ()
    may_sleep: bool = False


class Front:
    """The engine as the routes see it."""

    def __init__(self, engine: DeploymentHandle, limits: Limits) -> None:
        """Take the engine's handle and the limits."""
        self.engine = engine
        self.limits = limits
        self.rows = 0
        self._chat = engine.options(stream=True).answer_chat
        self._info: dict[str, Any] | None = None

    @contextlib.contextmanager
    def admit(self, rows: int) -> Iterator[None]:
        """Hold places for some rows, or refuse them at once where there are too few.

        Raises:
            Refusal: 429.
        """
        if self.rows + rows > self.limits.max_rows:
            raise overloaded(self.limits.retry_after_seconds)
        self.rows += rows
        metrics.set_waiting(self.rows)
        try:
            yield
        finally:
            self.rows -= rows
            metrics.set_waiting(self.rows)

    async def info(self) -> dict[str, Any]:
        """Return what never changes of the engine: see `TokenServer.info`.

        Raises:
            Refusal: 429, too many wait for a replica that can tell already; or that of `call`.
        """
        info = self._info
        if info is None:
            with self.admit(1):  # who waits for the first replica takes a place too
                info = self._info = await self.call("info")
        return info

    async def resolve_name(self, model: str) -> str:
        """Return the exact name of the model that would answer now.

        Raises:
            Refusal: 404, naming what is served; 503, it cannot be read now.
        """
        return await self.call("resolve_name", model)

    async def generate(self, rows: list[TokenRequest]) -> list[TokenResult]:
        """Return one result for each row."""
        return await self.call("generate", rows)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Return what a replica answers; a call whose replica died is made once more.

        A call that is given up, since its time is over or its client left, is given up at the replica too.

        Raises:
            Refusal: 404, 503 or 504.
        """
        deadline = asyncio.get_running_loop().time() + self.limits.timeout_seconds
        hint: dict[str, str] = {}
        for attempt in range(1, TRIES + 1):
            response = getattr(self.engine, method).remote(*arguments, **hint)
            try:
                async with asyncio.timeout_at(deadline):
                    return await response
            except NotFoundError as error:
                raise unknown_model(_own_words(error)) from error
            except TimeoutError as error:
                response.cancel()
                raise timed_out(self.limits.timeout_seconds) from error
            except asyncio.CancelledError:
                response.cancel()
                raise
            except LOST as error:
                if attempt == TRIES:
                    raise replica_lost() from error
                hint = {AFTER: response.request_id}
                metrics.count_retry(method)
            except ServiceError as error:  # a version that is known and cannot be read now
                logger.warning("%s cannot be answered now: %s", method, _own_words(error))
                raise unavailable() from error
        raise AssertionError("the last try either returns or raises")

    async def stream_chat(self, fields: dict[str, Any]) -> AsyncIterator[Any]:
        """Yield the parts of a chat's answer; see `TokenServer.answer_chat`.

        A chat whose replica died before the first part is asked once more; later the parts cannot be taken back.

        Raises:
            Refusal: 503 or 504.
        """
        deadline = asyncio.get_running_loop().time() + self.limits.timeout_seconds
        hint: dict[str, str] = {}
        for attempt in range(1, TRIES + 1):
            parts: Any = self._chat.remote(fields, **hint)
            has_begun = is_over = False
            try:
                while True:
                    async with asyncio.timeout_at(deadline):
                        part = await anext(parts)
                    has_begun = True
                    yield part
            except StopAsyncIteration:
                is_over = True
                return
            except TimeoutError as error:
                raise timed_out(self.limits.timeout_seconds) from error
            except LOST as error:
                is_over = True
                if has_begun or attempt == TRIES:
                    raise replica_lost() from error
                hint = {AFTER: parts.request_id}
                metrics.count_retry("chat")
            finally:
                if not is_over:
                    parts.cancel()


def _own_words(error: Exception) -> str:
    """Return our own error's message, without what Ray puts around it."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return str(cause.args[0]) if cause.args else "not found"
