"""A teacher that somebody else started and keeps: what a job has to know of it before it asks."""

from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from raydistill.core.errors import NotFoundError, ServiceError
from raydistill.engine.app import ENGINE, get_engine


@dataclass(frozen=True)
class RunningTeacher:
    """A teacher's application.

    Attributes:
        handle: of its engine.
        model: as its user wrote it.
        revision: of the weights that answer; see core.models.model_revision.
        max_model_len: the longest prompt plus completion, in tokens.
        max_replicas: that it may come to have.
    """

    handle: DeploymentHandle
    model: str
    revision: str
    max_model_len: int
    max_replicas: int


def find_teacher(name: str, timeout_seconds: float) -> RunningTeacher:
    """Return a running application's engine; one without a replica is woken and waited for.

    Raises:
        NotFoundError: there is no such application, or it has no engine.
        ServiceError: it does not answer in time.
    """
    applications = serve.status().applications
    if name not in applications or ENGINE not in applications[name].deployments:
        known = [known for known, status in applications.items() if ENGINE in status.deployments]
        raise NotFoundError(
            f"create_data.teacher_application: no teacher {name!r} runs on this cluster. Running: "
            f"{', '.join(sorted(known)) or 'none'}. Deploy one (see cluster/serve.teacher.yaml), or leave the key out: "
            "then the job starts a teacher of its own."
        )
    handle = get_engine(name)
    try:
        info = handle.info.remote().result(timeout_s=timeout_seconds)
    except (TimeoutError, RayError, RayServeException) as error:
        raise ServiceError(f"the teacher {name!r} does not answer ({type(error).__name__}: {error}).") from error
    return RunningTeacher(handle, info["model_id"], info["revision"], info["max_model_len"], _max_replicas(name))


def _max_replicas(name: str) -> int:
    client: Any = _get_global_client()  # Ray's public status does not say
    options = client.get_serve_details()["applications"][name]["deployments"][ENGINE]["deployment_config"]
    scaling = options.get("autoscaling_config")
    return scaling["max_replicas"] if scaling else options["num_replicas"]
