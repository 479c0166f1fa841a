"""What every request passes before a route sees it: an id, the key, the size and form of its body, its headers.

One plain ASGI layer, so that a body is counted while it comes in and a stream passes through untouched.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raydistill.core.keys import key_matches
from raydistill.engine import metrics
from raydistill.engine.refusals import Refusal, internal

logger = logging.getLogger("ray.serve.raydistill")

REQUEST_ID = "x-request-id"
TRACE = "raydistill"  # where a request's Trace lies in its scope
# Ray's proxy and LLM routes read these from a client. Nothing behind the front may: limits are the server's.
DROPPED_HEADERS = frozenset(
    {
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "serve-multiplexed-model-id",
        "x-session-id",
        "x-data-parallel-rank",
    }
)
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass
class Trace:
    """What is known of one request: its last moment, by the loop's clock, and what its log line and counters say."""

    request_id: str
    deadline: float
    body: Any = None
    code: str = ""
    model: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Guard:
    """The ASGI layer around the application."""

    def __init__(self, app: ASGIApp, key_hash: str | None, max_body_bytes: int, timeout_seconds: float) -> None:
        """Take the application, the key's hash (None: no key), the longest body, and the time from arrival on."""
        self._app = app
        self._key_hash = key_hash
        self._max_body_bytes = max_body_bytes
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it in our form; say in one line and one counter how it ended."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        trace = Trace(given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex, deadline)
        scope[TRACE] = trace
        start, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if trace.request_id != given:  # Serve's proxy itself returns the one that came in
                    MutableHeaders(scope=message)[REQUEST_ID] = trace.request_id
            await send(message)

        try:
            try:
                self._check_head(scope)
                scope["headers"] = [item for item in scope["headers"] if _normal(item[0]) not in DROPPED_HEADERS]
                trace.body = await self._read_in_time(scope, receive, deadline)
                await self._app(scope, receive, send_and_note)
            except Refusal as refusal:
                await self._refuse(refusal, trace, bool(status), (scope, receive, send_and_note))
            except Exception:  # the process's border: whatever it was, the client gets our form and the log the reason
                logger.exception("request %s failed", trace.request_id)
                await self._refuse(internal(), trace, bool(status), (scope, receive, send_and_note))
        finally:
            self._note(scope, trace, status, time.perf_counter() - start)

    @staticmethod
    async def _refuse(refusal: Refusal, trace: Trace, has_begun: bool, asgi: tuple[Scope, Receive, Send]) -> None:
        trace.code = refusal.code
        if not has_begun:
            await refusal.response()(*asgi)

    @staticmethod
    def _note(scope: Scope, trace: Trace, status: int, seconds: float) -> None:
        """Count and log a request; status 0 where the client left before an answer."""
        route = getattr(scope.get("route"), "path", "none")
        code = trace.code or ("" if status else "client_left")
        metrics.count_response(route, status or 499, code)
        facts = {"route": route, "status": status or 499, "code": code, "model": trace.model, **trace.facts}
        logger.info(
            "%s %s %s",
            scope["method"],
            route,
            status or 499,
            extra={"client_request_id": trace.request_id, "seconds": round(seconds, 4), **facts},
        )

    def _check_head(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._key_hash is not None and not any(key_matches(key, self._key_hash) for key in _given_keys(headers)):
            raise Refusal(
                401,
                "unauthorized",
                "wrong or missing API key (x-api-key or Authorization: Bearer)",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if headers.get("content-length", "").isdecimal() and int(headers["content-length"]) > self._max_body_bytes:
            self._too_large()

    def _too_large(self) -> NoReturn:
        message = f"the body is longer than {self._max_body_bytes} bytes"
        raise Refusal(413, "body_too_large", message, headers={"Connection": "close"})

    async def _read_in_time(self, scope: Scope, receive: Receive, deadline: float) -> Any:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._read_json(scope, receive)
        except TimeoutError as error:  # a client that stops in the middle would hold its place for ever
            message = f"the body was not complete within {self._timeout_seconds:g} s, the server's limit"
            raise Refusal(408, "body_timeout", message, headers={"Connection": "close"}) from error

    async def _read_json(self, scope: Scope, receive: Receive) -> Any:
        """Return the JSON value of a POST's body, {} of an empty one; None of other methods, whose body is left."""
        if scope["method"] != "POST":
            return None
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise Refusal(400, "incomplete_body", "the client left before the body was complete")
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                self._too_large()
            more = message.get("more_body", False)
        if not body:
            return {}
        check_content_type(Headers(scope=scope))
        return parse_json(bytes(body))


def _normal(name: bytes) -> str:
    """Return a header's name as Ray compares it: `-` and `_` are the same to it."""
    return name.decode("latin-1").lower().replace("_", "-")


def _given_keys(headers: Headers) -> list[bytes]:
    """Return the keys that a request carries, as the bytes that came in: headers need not be text."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [headers.get("x-api-key", "").encode("latin-1"), bearer.encode("latin-1")]


def check_content_type(headers: Headers) -> None:
    """Refuse a body that does not say once, and plainly, that it is JSON."""
    given = headers.getlist("content-type")
    kind, *parameters = [part.strip().lower() for part in (given[0] if given else "").split(";")]
    is_json = len(given) == 1 and kind == "application/json"
    if not is_json or any(part not in ("", "charset=utf-8", 'charset="utf-8"') for part in parameters):
        raise Refusal(415, "unsupported_media_type", "send one header Content-Type: application/json", "content-type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "unsupported_media_type", "send the body as it is, not compressed", "content-encoding")


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        Refusal: it is no JSON (NaN and Infinity are none), no UTF-8, nested too deep, or holds half a character.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        if _ESCAPED_SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded; a pair has become one
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg}, line {error.lineno}, column {error.colno}"
        raise Refusal(400, "malformed_json", message) from error
    except UnicodeDecodeError as error:
        raise Refusal(400, "malformed_json", f"the body is not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise Refusal(400, "malformed_json", "the body holds half of a surrogate pair, which is no text") from error
    except RecursionError as error:
        raise Refusal(400, "malformed_json", "the body is nested too deep") from error
    except ValueError as error:  # an integer of thousands of digits
        raise Refusal(400, "malformed_json", "the body holds a number that is too long") from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Refusal(400, "malformed_json", f"the body is no JSON: {name} is no number there")
