"""The student as a Serve application: `raydistill.serving.app:build` in a Serve config, or `start` from a job."""

import logging
from typing import Any

from pydantic import Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from raydistill.core.config import validate
from raydistill.core.errors import ConfigError, UnavailableError
from raydistill.core.models import resolve_model
from raydistill.core.preflight import check_storage
from raydistill.core.uris import absolute, join, parse_model_path
from raydistill.engine.app import build_application, run_application, stop_application
from raydistill.engine.args import MERGING, make_llm_config
from raydistill.engine.config import EngineConfig
from raydistill.registry.versions import LABEL
from raydistill.serving.merged import MergedServer
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
    merged = config.adapter_mode == "merged"
    if merged:
        config = _prepare_merging(config)
    server = MergedServer if merged else StudentServer
    models_uri = join(absolute(config.storage), "models")
    _check_registry(models_uri)
    model_dir = resolve_model(config.model)
    llm_config = make_llm_config(config.model, model_dir, config, server, lora=not merged, drains=True)
    llm_config.experimental_configs["raydistill"] = {
        "models_uri": models_uri,
        "max_lora_rank": config.max_lora_rank,
        "max_resident": llm_config.engine_kwargs.get("max_cpu_loras"),
        "merged_alias": config.merged_alias,
        "poll_seconds": config.poll_seconds,
        "request_timeout_seconds": config.front.request_timeout_seconds,
    }
    return build_application(llm_config, config)


def _check_registry(models_uri: str) -> None:
    """Refuse a store that a replica could never read: it would say so only when its engine has started.

    Raises:
        ConfigError: no such bucket, no rights to read, or no S3 endpoint.
    """
    try:
        check_storage("student args: storage", models_uri, read_only=True)
    except ConfigError as error:
        if not isinstance(error.__cause__, UnavailableError):
            raise
        logger.warning("%s A replica waits for it.", error)  # a cluster starts anew while its store is away


def _prepare_merging(config: StudentConfig) -> StudentConfig:
    """Return the settings with the worker that can merge.

    Raises:
        ConfigError: nothing says which alias is to be merged.
    """
    example = '"triage/final"'
    if not config.merged_alias:
        raise ConfigError(f'student args: adapter_mode is "merged", so merged_alias has to say what, like {example}')
    if LABEL.fullmatch(parse_model_path(config.merged_alias)[1]):
        raise ConfigError(f"student args: merged_alias is {config.merged_alias!r}: name an alias, like {example}")
    return config.model_copy(update={"engine_kwargs": {**MERGING, **config.engine_kwargs}})


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
