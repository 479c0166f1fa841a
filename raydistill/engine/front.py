"""How the front asks the engine: so many rows at once, within a time, and again where a replica died."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from raydistill.core.errors import EngineGoneError, EngineLostError, NotFoundError, ServiceError
from raydistill.core.records import TokenRequest, TokenResult
from raydistill.engine import metrics
from raydistill.engine.refusals import overloaded, replica_lost, timed_out, unavailable, unknown_model
from raydistill.engine.routing import AFTER, router_id

logger = logging.getLogger(__name__)

LOST = (RayActorError, EngineLostError, DeploymentUnavailableError)  # the replica is gone, or its engine
TRIES = 2  # replicas that may die under one request, before its first token
PAUSE_SECONDS = 0.5  # between two looks for an engine that is not gone; Serve takes seconds to replace one


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

    async def info(self, deadline: float) -> dict[str, Any]:
        """Return what never changes of the engine: see `TokenServer.info`.

        Raises:
            Refusal: 429, too many wait for a replica that can tell already; or that of `call`.
        """
        info = self._info
        if info is None:
            with self.admit(1):  # who waits for the first replica takes a place too
                info = self._info = await self.call("info", deadline)
        return info

    async def resolve_name(self, model: str, deadline: float) -> str:
        """Return the exact name of the model that would answer now.

        Raises:
            Refusal: 404, naming what is served; 429, or 503, it cannot be read now.
        """
        with self.admit(1):
            return await self.call("resolve_name", deadline, model)

    async def generate(self, rows: list[TokenRequest], deadline: float) -> list[TokenResult]:
        """Return one result for each row."""
        return await self.call("generate", deadline, rows)

    async def call(self, method: str, deadline: float, *arguments: Any) -> Any:
        """Return what a replica answers; for a call whose replica died see `_Losses`.

        A call that is given up, since its time is over or its client left, is given up at the replica too.

        Raises:
            Refusal: 404, 503 or 504.
        """
        losses = _Losses(method, deadline)
        while True:
            response = getattr(self.engine, method).remote(*arguments, **losses.hint)
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
                await losses.meet(error, response)
            except ServiceError as error:  # a version that is known and cannot be read now
                logger.warning("%s cannot be answered now: %s", method, _own_words(error))
                raise unavailable() from error

    async def stream_chat(self, fields: dict[str, Any], deadline: float) -> AsyncIterator[Any]:
        """Yield the parts of a chat's answer; see `TokenServer.answer_chat`.

        A chat whose replica died before the first part is asked again as in `call`; later the parts cannot be taken
        back.

        Raises:
            Refusal: 503 or 504.
        """
        losses = _Losses("chat", deadline)
        while True:
            parts: Any = self._chat.remote(fields, **losses.hint)
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
                if has_begun:
                    raise replica_lost() from error
                await losses.meet(error, parts)
            finally:
                if not is_over:
                    parts.cancel()


class _Losses:
    """What one request has met of dead replicas, and whether it is asked again.

    A request under which a replica died is asked once more, at another one where there is one: it may be what kills
    them. One that came to an engine which was gone already has done nothing: it is asked until it finds another, which
    with a single replica is when Serve has replaced it.

    Attributes:
        hint: for the router, with the next try.
    """

    def __init__(self, route: str, deadline: float) -> None:
        """Take the route, to count tries by, and the request's last moment, by the loop's clock."""
        self.hint: dict[str, str] = {}
        self._route = route
        self._deadline = deadline
        self._deaths = self._gone = 0

    async def meet(self, error: Exception, response: Any) -> None:
        """Return when the request is to be asked again.

        Raises:
            Refusal: 503, it is not.
        """
        is_gone = isinstance(error, EngineGoneError)
        self._gone += is_gone
        self._deaths += not is_gone
        pause_seconds = PAUSE_SECONDS if is_gone and self._gone > 1 else 0
        if self._deaths == TRIES or asyncio.get_running_loop().time() + pause_seconds > self._deadline:
            raise replica_lost() from error
        await asyncio.sleep(pause_seconds)
        self.hint = {AFTER: router_id(response)}
        metrics.count_retry(self._route)


def _own_words(error: Exception) -> str:
    """Return our own error's message, without what Ray puts around it."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return str(cause.args[0]) if cause.args else "not found"
