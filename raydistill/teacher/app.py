"""The teacher as a Serve application: `raydistill.teacher.app:build` in a Serve config, or `start` from a job."""

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from raydistill.core.config import validate
from raydistill.core.models import resolve_model
from raydistill.engine.app import build_application, run_application, stop_application
from raydistill.engine.args import make_llm_config
from raydistill.engine.config import EngineConfig
from raydistill.engine.server import TokenServer


class TeacherConfig(EngineConfig):
    """Arguments of the teacher's application in a Serve config file."""

    model: str
    """A hub id, a folder, an s3:// folder or demo://smollm2-135m-instruct."""


def build(args: dict[str, Any]) -> serve.Application:
    """Return the teacher's application from the `args` of a Serve config file."""
    config = validate(TeacherConfig, args, "teacher args")
    llm_config = make_llm_config(config.model, resolve_model(config.model), config, TokenServer, lora=False)
    return build_application(llm_config, config)


def start(model: str, engine: EngineConfig, application: tuple[str, str] = ("teacher", "/teacher")) -> DeploymentHandle:
    """Start the teacher and return its engine's handle: `generate.remote(rows)` gives results in order.

    Args:
        model: that answers.
        engine: the engine's settings.
        application: name and route prefix.

    Raises:
        ServiceError: it did not become ready within the engine's start_timeout_seconds.
    """
    app = build({"model": model, **engine.model_dump()})
    return run_application(app, *application, engine.start_timeout_seconds)


def stop(name: str = "teacher") -> None:
    """Stop the teacher; its memory is free when this returns."""
    stop_application(name)
