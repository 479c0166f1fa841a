"""Assembly of a Serve application: engine replicas behind one ingress, started and stopped by name.

By hand rather than by `build_openai_app`, which adds routes, CORS and model look-ups of its own.
"""

import time
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.schema import ApplicationStatus

from raydistill.core.errors import ServiceError
from raydistill.core.keys import read_key
from raydistill.engine.config import EngineConfig
from raydistill.engine.ingress import check_front, make_ingress
from raydistill.engine.routing import ROUTER

ENGINE = "engine"  # the deployment's name in every application


def build_application(llm_config: LLMConfig, config: EngineConfig) -> serve.Application:
    """Return the application: deployment `engine` behind the ingress with its OpenAI and token-level routes.

    Where RAYDISTILL_API_KEY is set here, every request has to carry it.

    Args:
        llm_config: of the engine.
        config: the engine's settings.
    """
    router = RequestRouterConfig.model_validate({"request_router_class": ROUTER})
    options = {"name": ENGINE, "request_router_config": router}
    engine = build_llm_deployment(llm_config, override_serve_options=options)
    return make_ingress(engine, read_key(), config)


def run_application(app: serve.Application, name: str, route_prefix: str, timeout_seconds: float) -> DeploymentHandle:
    """Start an application and return the handle of its engine, when that is healthy.

    Raises:
        ConfigError: Serve listens on a non-loopback address, and there is no key; nothing was started.
        ServiceError: it failed, or was not ready in time; it is stopped again.
    """
    check_front(read_key() is not None)
    serve._run(app, name=name, route_prefix=route_prefix, _blocking=False)
    deadline = time.monotonic() + timeout_seconds
    while True:
        status = serve.status().applications.get(name)
        if status is not None and status.status == ApplicationStatus.RUNNING:
            return get_engine(name)
        failed = status is not None and status.status in (
            ApplicationStatus.DEPLOY_FAILED,
            ApplicationStatus.UNHEALTHY,
        )
        if failed or time.monotonic() > deadline:
            detail = _describe(status)
            serve.delete(name, _blocking=False)
            reason = "did not start" if failed else f"was not ready after {timeout_seconds:.0f} s"
            raise ServiceError(f"the application {name!r} {reason}: {detail}")
        time.sleep(0.5)


def get_engine(name: str) -> DeploymentHandle:
    """Return the handle of an application's engine; its `generate` takes and gives lists of rows."""
    return serve.get_deployment_handle(ENGINE, app_name=name)


def stop_application(name: str) -> None:
    """Stop an application and wait until its replicas are gone; an absent one is no error."""
    serve.delete(name)


def _describe(status: Any) -> str:
    if status is None:
        return "Serve knows nothing of it."
    parts = [status.message.strip()] if status.message else []
    parts += [f"{name}: {item.message.strip()}" for name, item in status.deployments.items() if item.message.strip()]
    return " | ".join(parts)[-2000:] or f"status {status.status}."
