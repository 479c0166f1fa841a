"""The front of an application: the OpenAI routes, the token-level routes, `/status`; no other route."""

from typing import Any, NoReturn

from fastapi import FastAPI, Request
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from raydistill.core.errors import ConfigError
from raydistill.core.keys import VARIABLE, hash_key
from raydistill.core.uris import is_loopback
from raydistill.engine import openai_routes, token_routes
from raydistill.engine.config import EngineConfig
from raydistill.engine.front import Front, Limits
from raydistill.engine.guards import Guard
from raydistill.engine.openai_routes import MODEL_HEADER
from raydistill.engine.refusals import Refusal
from raydistill.engine.sampling import Futures
from raydistill.engine.status import describe_application

MAX_IN_FLIGHT = 4000  # long polls occupy slots; with Serve's default of 5 they starve everything else
MAX_QUEUED = 4000  # in Serve's proxy, when all of these are taken; then 429, of which a client backs off, and not 503


def check_front(has_key: bool) -> None:
    """Refuse a front that other machines can reach and nothing protects.

    Asks Serve's controller, since the proxies listen where `http_options.host` says, not where an application says.

    Raises:
        ConfigError: Serve listens on a non-loopback address, and there is no key.
    """
    if has_key:
        return
    client = _get_global_client(raise_if_no_controller_running=False)
    host = client.http_config.host if client is not None else None
    if host is not None and not is_loopback(host):
        raise ConfigError(
            f"Serve listens on {host}, where other machines reach it, and there is no key. Set {VARIABLE} where the "
            "application is built, or set http_options.host to 127.0.0.1."
        )


class Ingress:
    """One process that speaks HTTP and hands rows to the engine's replicas."""

    def __init__(self, engine: DeploymentHandle, limits: Limits) -> None:
        """Take the engine's handle and what may pass; see `check_front`."""
        check_front(limits.key_hash is not None)
        self._front = Front(engine, limits)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application that Serve puts HTTP requests to."""
        return make_app(self._front)


def make_app(front: Front) -> FastAPI:
    """Return the routes of one front, behind its guard."""
    app = FastAPI(title="raydistill", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.front = front
    app.state.futures = Futures(front)
    app.include_router(openai_routes.router)
    app.include_router(token_routes.router)
    app.add_exception_handler(HTTPException, _refuse_route)
    limits = front.limits
    app.add_middleware(
        Guard, key_hash=limits.key_hash, max_body_bytes=limits.max_body_bytes, timeout_seconds=limits.timeout_seconds
    )
    if limits.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=[MODEL_HEADER, "x-request-id", "retry-after"],
        )

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answer that the front is up."""
        return {"status": "ok"}

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """Answer what every replica serves: base model, aliases with their versions, refused versions."""
        return await describe_application(front)

    return app


async def _refuse_route(request: Request, error: Exception) -> NoReturn:
    """Refuse a path or method that is not served, in our form; the guard answers it."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        raise Refusal(405, "method_not_allowed", f"{request.method} is not served here", headers=error.headers)
    raise Refusal(404, "unknown_route", "there is no such route here")


def make_ingress(engine: Any, key: str | None, config: EngineConfig) -> serve.Application:
    """Return the ingress in front of an engine: one replica, since futures live in its process.

    The key's hash travels in the application, not the key in a runtime environment, which Ray writes into its logs.

    Args:
        engine: the bound deployment of the engine.
        key: that requests have to carry; None for none.
        config: the engine's settings, those of its front among them.
    """
    front = config.front
    limits = Limits(
        key_hash=hash_key(key) if key is not None else None,
        max_body_bytes=front.max_body_kib * 1024,
        max_rows=config.max_replicas * config.max_rows_at_replica,
        timeout_seconds=front.request_timeout_seconds,
        retry_after_seconds=front.retry_after_seconds,
        cors_origins=tuple(front.cors_origins),
        may_sleep=config.autoscaling is not None and config.autoscaling.min_replicas == 0,
    )
    deploy: Any = serve.deployment(
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=MAX_IN_FLIGHT,
        max_queued_requests=MAX_QUEUED,
        backpressure_config={"status_code": 429, "retry_after_s": front.retry_after_seconds},
        graceful_shutdown_timeout_s=config.drain_seconds,
        ray_actor_options={"num_cpus": 1},
        logging_config={"encoding": "JSON", "enable_access_log": False},  # the guard's line says more
    )
    return deploy(serve.ingress()(Ingress)).bind(engine, limits)
