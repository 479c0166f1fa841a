"""What a running service says of itself, by the words of `jobs.serve`, and its faults in sentences."""

import os
from typing import Any

import httpx

from jobs import serve
from raydistill.client.service import DEFAULT_BASE_URL
from raydistill.client.transport import check_base_url
from raydistill.core.errors import ServiceError
from raydistill.core.records import Version


def _find_url(url: str | None) -> str:
    return check_base_url(url or os.environ.get("RAYDISTILL_BASE_URL") or DEFAULT_BASE_URL)


def read_status(url: str | None) -> dict[str, Any]:
    """Return a service's status.

    Raises:
        ConfigError: the URL is none.
        ServiceError: nobody answers there, the key is wrong, or it is no raydistill service.
    """
    base_url = _find_url(url)
    try:
        status = serve.read_status(base_url)
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        hint = "Set RAYDISTILL_API_KEY to its key." if code in (401, 403) else "Is it a raydistill service?"
        raise ServiceError(f"{base_url}/status answered {code}. {hint}") from error
    except httpx.HTTPError as error:
        raise ServiceError(
            f"{base_url} does not answer ({type(error).__name__}: {error}). Is the service running, and is --url "
            "(RAYDISTILL_BASE_URL) its address?"
        ) from error
    except ValueError as error:
        raise ServiceError(f"{base_url}/status answered no JSON. Is it a raydistill service?") from error
    if not isinstance(status, dict) or "base_model" not in status:
        raise ServiceError(f"{base_url}/status answered something else than a status. Is it a raydistill service?")
    return {"url": base_url, **status}


def wait_for_version(url: str | None, alias: str, version: Version, timeout_seconds: float) -> bool:
    """Return when every replica serves a version; see `jobs.serve.wait_for_version`."""
    return serve.wait_for_version(_find_url(url), alias, version, timeout_seconds)
