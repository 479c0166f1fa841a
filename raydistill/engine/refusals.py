"""The one form of an error over HTTP: `{"error": {"code", "field", "message"}}`, which OpenAI clients understand too.

A message is always our own sentence, or the engine's about a request's length; never an exception's text, which may
hold a path or the request itself.
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from raydistill.core.errors import RaydistillError

logger = logging.getLogger("ray.serve.raydistill")  # below Serve's own: its handlers write the replica's log file

MAX_MESSAGE_CHARS = 500
_BRANCH = re.compile(r"str|int|list\[.*\]")  # pydantic's word for one of several types that a field may have
# What the engine says of a request that is too long, in its own words and numbers. All else of its refusals may be any
# exception's text: vllm makes a 400 of every ValueError, TypeError and error of a template.
_TOO_LONG = re.compile(r"This model's maximum context length is \d+ tokens\b[\w ,.'()=-]*", re.ASCII)
Body = TypeVar("Body", bound=BaseModel)


class Refusal(RaydistillError):
    """A request that is not answered, and why."""

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Take what the client gets to see.

        Args:
            status: of HTTP.
            code: one word that programs may rely on; docs/serving.md lists them.
            message: for a person.
            field: of the request's body, where one is at fault.
            headers: of the answer.
        """
        super().__init__(status, code, message, field, dict(headers or {}))
        self.status = status
        self.code = code
        self.message = message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 3] + "..."
        self.field = field
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the answer's body."""
        return {"error": {"code": self.code, "field": self.field, "message": self.message}}

    def response(self) -> Response:
        """Return the answer."""
        return JSONResponse(self.body(), self.status, self.headers)

    def event(self) -> str:
        """Return the error as the last event of a stream whose status is sent already."""
        return f"data: {json.dumps(self.body())}\n\ndata: [DONE]\n\n"


def overloaded(retry_after_seconds: int) -> Refusal:
    """Return the refusal of one request too many."""
    return Refusal(
        429,
        "overloaded",
        "as many requests as may be are waiting; try again after the seconds in Retry-After",
        headers={"Retry-After": str(retry_after_seconds)},
    )


def replica_lost() -> Refusal:
    """Return what a request gets whose replica died, and whose second one too, or for which none came in time."""
    return Refusal(503, "replica_lost", "the engine's replica was lost; try again", headers={"Retry-After": "5"})


def timed_out(timeout_seconds: float) -> Refusal:
    """Return what a request gets that took longer than the server allows."""
    return Refusal(504, "timeout", f"no answer within {timeout_seconds:g} s, the server's limit; ask for fewer tokens")


def unavailable() -> Refusal:
    """Return what a request gets that names a version which storage, away now, would have to give."""
    return Refusal(
        503,
        "version_unavailable",
        "this version is not loaded, and storage does not give it now; try again",
        "model",
        headers={"Retry-After": "5"},
    )


def internal() -> Refusal:
    """Return what a request gets when something failed that nobody foresaw; its text goes into the log alone."""
    return Refusal(500, "internal", "the server failed; its log has the reason under this request's x-request-id")


def unknown_model(message: str) -> Refusal:
    """Return the refusal of a name that is not served; the message names what is."""
    return Refusal(404, "unknown_model", message, "model")


def from_engine(status: int, message: str, field: str | None = None) -> Refusal:
    """Return the refusal of a request that the engine itself did not take.

    Args:
        status: that the engine gave it: 4xx is the request's fault.
        message: the engine's; shown where it says that the request is too long, or names what is served (404).
        field: of the request, where the engine names one.
    """
    if status == 404:
        return unknown_model(message)
    if status == 503:
        logger.warning("the engine cannot serve a request now: %s", message)
        return unavailable()
    if not 400 <= status < 500:
        logger.error("the engine failed on a request: %s", message)
        return internal()
    if not _TOO_LONG.fullmatch(message):
        logger.warning("the engine refused a request: %s", message)
        message = "the engine refused this request; the server's log says why"
    return Refusal(status, "refused_by_engine", message, field)


def read_body(kind: type[Body], values: Any) -> Body:
    """Return a request's body as one of our models.

    Raises:
        Refusal: a field is unknown, missing, of the wrong type or out of range; it is named.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"] if not _BRANCH.fullmatch(str(part)))
    if first["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        raise Refusal(422, "unknown_field", f"{path} is not supported here; known are {known}", path[:100])
    if not first["loc"]:
        raise Refusal(422, "invalid_value", "the body must be a JSON object")
    message = first["msg"].removeprefix("Value error, ")
    raise Refusal(422, "invalid_value", f"{path}: {message}", path[:100])
