"""The teacher's application: one that others share and that stays, or one of the job's own."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.budget import check_length
from jobs.data_config import CreateDataConfig
from jobs.data_plan import Plan
from jobs.progress import show_stage
from jobs.runtime import ClusterConfig, claim_application, start_http
from raydistill.core.errors import ConflictError
from raydistill.engine.config import EngineConfig

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


@contextlib.contextmanager
def open_teacher(
    plan: Plan, config: CreateDataConfig, engine: EngineConfig, cluster: ClusterConfig
) -> "Iterator[tuple[DeploymentHandle, EngineConfig]]":
    """Give the handle of the teacher's engine and its settings, on the cluster that is connected.

    Args:
        plan: what it is to be asked.
        config: names the application that is shared, if any; it is left as it is. One of the job's own is gone at the
            end.
        engine: settings of the job's own.
        cluster: where that runs.

    Raises:
        NotFoundError, ConflictError, ConfigError: what is shared does not run, has another model, or too little room.
        ServiceError: it does not answer, or the job's own did not start.
    """
    if config.teacher_application is not None:
        yield _find_shared(config.teacher_application, plan, config, engine)
        return
    from raydistill.teacher import app

    start_http(cluster)
    application = claim_application("teacher", cluster, plan.folder)
    with show_stage("teacher: starting"):
        handle = app.start(config.teacher_model, engine, application)
    try:
        yield handle, engine
    finally:
        app.stop(application[0])


def _find_shared(
    name: str, plan: Plan, config: CreateDataConfig, engine: EngineConfig
) -> "tuple[DeploymentHandle, EngineConfig]":
    """Return a running teacher and what is known of its settings, when it is the one that the dataset names."""
    from raydistill.teacher.running import find_teacher

    with show_stage(f"teacher: waiting for {name}"):
        teacher = find_teacher(name, engine.start_timeout_seconds)
    revision = plan.draft.teacher["revision"]
    if teacher.revision != revision:
        raise ConflictError(
            f"create_data.teacher_application: {name!r} answers with {teacher.model} (revision {teacher.revision}), "
            f"and teacher_model is {config.teacher_model} (revision {revision}). Name the one that runs, or deploy the "
            "other."
        )
    known = {"max_model_len": teacher.max_model_len, "num_replicas": teacher.max_replicas, "autoscaling": None}
    engine = engine.model_copy(update=known)
    check_length(plan, config, engine)
    return teacher.handle, engine
