"""HTTP to one service: the key, errors in words, and retries that are bounded and never hot."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from raydistill.core.errors import ConfigError, NotFoundError, ServiceError
from raydistill.core.uris import is_loopback

BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)  # between tries; one more try than there are waits
_CONNECT_TIMEOUT_SECONDS = 5.0
_LONG_POLL_SECONDS = 45.0  # a server holds a poll for 30 s at most
_MAX_RETRY_AFTER_SECONDS = 60.0
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class Transport:
    """A pool of connections to one base URL; belongs to one event loop."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        """Take a checked base URL (see `check_base_url`) and the key, None where the service has none."""
        self._base_url = base_url
        is_here = is_loopback(urlsplit(base_url).hostname or "")
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"x-api-key": api_key} if api_key else {},
            timeout=httpx.Timeout(_LONG_POLL_SECONDS, connect=_CONNECT_TIMEOUT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=not is_here,  # a proxy cannot reach this machine's own ports
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def request_json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object that a call answers; see `request`."""
        return self.parse_object(await self.request(method, path, body))

    def parse_object(self, answer: httpx.Response) -> dict[str, Any]:
        """Return an answer's JSON object, or raise ServiceError where it has none."""
        try:
            content = answer.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            content = None
        if not isinstance(content, dict):
            raise ServiceError(
                f"{answer.request.url}: the answer is no JSON object ({answer.text[:80]!r}). Is {self._base_url} a "
                "raydistill service?"
            )
        return content

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        passed: frozenset[int] = frozenset(),
    ) -> httpx.Response:
        """Return a successful answer, or one of a status in `passed`, after at most `len(BACKOFF_SECONDS)` retries.

        Raises:
            NotFoundError: status 404, with the server's own words.
            ConfigError: the server refuses what was asked (400, 413, 422).
            ServiceError: no answer, a wrong key, or a failure that outlasted the retries.
        """
        for wait_seconds in (*BACKOFF_SECONDS, None):
            try:
                answer = await self._client.request(method, path, json=body, headers=dict(headers or {}))
            except httpx.TransportError as error:
                if wait_seconds is None:
                    raise ServiceError(
                        f"{self._base_url} does not answer ({type(error).__name__}: {error}). Is the service running, "
                        "and is RAYDISTILL_BASE_URL its address?"
                    ) from error
                await asyncio.sleep(wait_seconds)
                continue
            if answer.is_success or answer.status_code in passed:
                return answer
            may_retry = answer.status_code in _RETRIED and answer.headers.get("x-should-retry") != "false"
            if not may_retry or wait_seconds is None:
                raise self._error(answer)
            await asyncio.sleep(retry_after(answer, wait_seconds))
        raise AssertionError("the last try either returns or raises")

    def _error(self, answer: httpx.Response) -> Exception:
        detail = _detail(answer)
        where = f"{answer.request.method} {answer.request.url.path}"
        status = answer.status_code
        if status == 404:
            return NotFoundError(f"{detail} ({where}: 404)")
        if status in (400, 413, 422):
            return ConfigError(f"the server refused the request: {detail} ({where}: {status})")
        if status in (401, 403):
            return ServiceError(
                f"{self._base_url} refused the key: {detail} ({where}: {status}). Set RAYDISTILL_API_KEY or api_key."
            )
        return ServiceError(f"the server answered {status}: {detail} ({where})")


def check_base_url(base_url: str) -> str:
    """Return a base URL without its trailing slash, or raise ConfigError where it is none."""
    parts = urlsplit(base_url)
    if "@" in parts.netloc:  # every message that names the service would show it
        raise ConfigError("base_url holds a user name or a password. Write http://HOST:PORT, and the key as api_key.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"base_url: {base_url!r} is no address of a service. Write http://HOST:PORT.")
    return base_url.rstrip("/")


def retry_after(answer: httpx.Response, wait_seconds: float) -> float:
    """Return how long to wait: what the server asks, within bounds, or our own wait."""
    try:
        asked = float(answer.headers.get("retry-after", ""))
    except ValueError:  # absent, or a date
        return wait_seconds
    return min(max(asked, 0.1), _MAX_RETRY_AFTER_SECONDS) if asked == asked else wait_seconds


def _detail(answer: httpx.Response) -> str:
    """Return the server's words: FastAPI's `detail`, OpenAI's `error.message`, or the body's beginning."""
    try:
        content = answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if isinstance(content, dict):
        if "detail" in content:
            detail = content["detail"]
            return detail if isinstance(detail, str) else json.dumps(detail)[:500]
        error = content.get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return error["message"]
    return answer.text[:200] or answer.reason_phrase
