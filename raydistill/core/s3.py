"""The connection to an object store: one session decides credentials, region and endpoint for all that speaks S3."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from raydistill.core.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    RaydistillError,
    StorageError,
    UnavailableError,
)

if TYPE_CHECKING:
    import boto3

CONNECT_SECONDS = 5
READ_SECONDS = 60  # a large object in one PUT is answered only when the store has it
ATTEMPTS = 4

_RIGHTS = {
    "ListObjectsV2": "list",
    "GetObject": "read",
    "HeadObject": "read",
    "PutObject": "write",
    "DeleteObject": "delete",
}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "503"}
_BAD_KEYS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "InvalidClientTokenId",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
    "AuthorizationHeaderMalformed",
}


@functools.cache
def session() -> "boto3.Session":
    """Return this process's session, whose chain finds credentials (and renews those that end), region and endpoint."""
    import boto3

    return boto3.Session()


@functools.cache
def client() -> Any:
    """Return the client for all of a job's calls: patient with large objects, never without a limit."""
    return make_client(CONNECT_SECONDS, READ_SECONDS, ATTEMPTS)


def make_client(connect_seconds: float, read_seconds: float, attempts: int) -> Any:
    """Return an S3 client that gives up after so long and so many attempts.

    Raises:
        ConfigError: the endpoint is no address, or holds a password.
    """
    from botocore.config import Config

    config = Config(
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    try:
        made = session().client("s3", config=config)
    except ValueError as error:
        raise ConfigError(f"AWS_ENDPOINT_URL: {error}. Write http://HOST:PORT or https://HOST.") from error
    if "@" in urlsplit(made.meta.endpoint_url).netloc:  # every message and log that names the place would show it
        raise ConfigError(
            "AWS_ENDPOINT_URL holds a user name or a password. Write http://HOST:PORT there and put the key into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile."
        )
    return made


@contextlib.contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises about a place into our errors, which say what to do next."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        CredentialRetrievalError,
        HTTPClientError,
        IncompleteReadError,
    )
    from botocore.exceptions import ConnectionError as BotoConnectionError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _explain(uri, error) from error
    except ResponseParserError as error:
        raise StorageError(describe_stranger(uri, "something that is not S3's XML")) from error
    except RecursionError as error:  # boto3 asks a server that redirects everything where its bucket is, and so on
        raise StorageError(describe_stranger(uri, "a redirect (should it be https?)")) from error
    except (BotoConnectionError, HTTPClientError, IncompleteReadError, S3UploadFailedError) as error:
        raise UnavailableError(_describe_absence(uri, error)) from error
    except CredentialRetrievalError as error:  # who hands out credentials is away, as an agent may be when a pod starts
        raise UnavailableError(_describe_absence(uri, error)) from error
    except BotoCoreError as error:
        raise StorageError(_describe_absence(uri, error)) from error


def read_object(get: Callable[[], Any], attempts: int = ATTEMPTS) -> tuple[bytes, Any]:
    """Return an object's bytes and boto3's answer; where the connection is cut in the body, it is asked for again.

    boto3 repeats a request by itself only as long as the answer has not begun.

    Args:
        get: calls `get_object`.
        attempts: how often.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    for attempt in range(1, attempts + 1):
        answer = get()
        with contextlib.closing(answer["Body"]) as body:
            try:
                return body.read(), answer
            except (HTTPClientError, IncompleteReadError):
                if attempt == attempts:
                    raise
    raise ValueError("attempts must be at least 1")


def _describe_absence(uri: str, error: Exception) -> str:
    return (
        f"{uri}: the object store cannot be used: {error}. Check AWS_ENDPOINT_URL (is the store up, and can this "
        "machine reach it?), AWS_PROFILE and the credentials."
    )


def _explain(uri: str, error: Any) -> RaydistillError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    what = error.operation_name
    if code in ("NoSuchKey", "NotFound") or (code == "404" and what in ("GetObject", "HeadObject")):
        return NotFoundError(f"{uri} does not exist.")
    if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
        return ConflictError(f"{uri} was changed by somebody else: read it again and retry.")
    if code == "NoSuchBucket":
        return StorageError(
            f"{uri}: the bucket does not exist at {_endpoint()}. Create it, or name another one; where the endpoint "
            "is wrong, set AWS_ENDPOINT_URL."
        )
    if code in ("AccessDenied", "AllAccessDisabled", "403", "Forbidden"):
        right = _RIGHTS.get(what)
        if right is None:
            return StorageError(
                f"{uri}: {what} was refused ({code}). Check the role of AWS_PROFILE and who may take it."
            )
        return StorageError(
            f"{uri}: the credentials may not {right} there ({what}: {code}). Give them the right to list, read, write "
            "and delete objects below this place, or use others."
        )
    if code in _BAD_KEYS:
        return StorageError(
            f"{uri}: {_endpoint()} does not accept the credentials ({code}). Check AWS_ACCESS_KEY_ID, AWS_PROFILE, "
            "the region and this machine's clock."
        )
    if code in _BUSY or (status in (500, 502, 503, 504) and not code.isdigit()):
        return UnavailableError(f"{uri}: {_endpoint()} cannot do {what} now ({code}).")
    if code in ("NotImplemented", "501"):
        return StorageError(
            f"{uri}: {_endpoint()} does not know all of {what} (conditional writes, most likely). Use another store."
        )
    if code.isdigit() or not code:  # an S3 store names its errors; a bare status is some other server's
        kind = UnavailableError if status in (502, 504) else StorageError  # a gateway's, whose store may come back
        return kind(describe_stranger(uri, f"status {code or 'unknown'} without S3's XML"))
    return StorageError(f"{uri}: {what} failed, the object store answered {code}.")


def describe_stranger(uri: str, answer: str) -> str:
    """Return the message for an endpoint that is not S3's."""
    return (
        f"{uri}: {_endpoint()} answered {answer}. Is it an S3 endpoint? Set AWS_ENDPOINT_URL to the store's API "
        "address, not to its console."
    )


def _endpoint() -> str:
    return client().meta.endpoint_url
