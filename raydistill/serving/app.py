"""The student as a Serve application: `raydistill.serving.app:build` in a Serve config, or `start` from a job."""

import logging
from typing import Any

from pydantic import Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from raydistill.core.config import validate
from raydistill.core.models import resolve_model
from raydistill.core.uris import absolute, join
from raydistill.engine.app import build_application, run_application, stop_application
from raydistill.engine.args import make_llm_config
from raydistill.engine.config import EngineConfig
from raydistill.serving.replica import StudentServer

logger = logging.getLogger(__name__)


class StudentConfig(EngineConfig):
    """Arguments of the student's application in a Serve config file."""

    model: str
    """The base model: a hub id, a folder, an s3:// folder or demo://smollm2-135m-instruct."""
    storage: str
    """The task's storage ROOT; the models below ROOT/models are served."""
    poll_seconds: float = Field(2.0, gt=0)
    """How often a replica looks where the aliases point."""


def build(args: dict[str, Any]) -> serve.Application:
    """Return the student's application from the `args` of a Serve config file."""
    config = validate(StudentConfig, args, "student args")
    llm_config = make_llm_config(config.model, resolve_model(config.model), config, StudentServer, lora=True)
    llm_config.experimental_configs["raydistill"] = {
        "models_uri": join(absolute(config.storage), "models"),
        "max_lora_rank": config.max_lora_rank,
        "max_resident": llm_config.engine_kwargs["max_cpu_loras"],
        "poll_seconds": config.poll_seconds,
    }
    return build_application(llm_config, config)


def start(
    model: str,
    storage: str,
    engine: EngineConfig,
    poll_seconds: float = 2.0,
    application: tuple[str, str] = ("student", "/"),
) -> DeploymentHandle:
    """Start the student and return its engine's handle.

    Args:
        model: the base model.
        storage: the task's storage ROOT.
        engine: the engine's settings.
        poll_seconds: how often a replica looks where the aliases point.
        application: name and route prefix.

    Raises:
        ServiceError: it did not become ready within the engine's start_timeout_seconds.
    """
    app = build({"model": model, "storage": storage, "poll_seconds": poll_seconds, **engine.model_dump()})
    return run_application(app, *application, engine.start_timeout_seconds)


def stop(name: str = "student") -> None:
    """Stop the student; its memory is free when this returns."""
    stop_application(name)
