"""The driver of a run: a teacher, started once and left running, and create_data on a cluster that is there."""

import sys

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from jobs import create_data
from jobs.data_config import CreateDataConfig
from jobs.runtime import ClusterConfig, connect
from raydistill.dataset import ledger
from raydistill.engine.config import EngineConfig
from tests.teacher import counted_teacher, hash_teacher

DELAY_SECONDS = 0.4  # that the hash teacher takes for each row
REPLICAS = EngineConfig.model_validate({"num_replicas": 2})


def main(config_json: str, teacher: str, log: str) -> None:
    """Create the dataset; RAY_ADDRESS says on which cluster."""
    ledger.COMPACT_ROWS = 40  # so that objects are joined while rows are asked
    config = CreateDataConfig.model_validate_json(config_json)
    connect(ClusterConfig.model_validate({}))
    serve.start(http_options={"location": "NoServer"})
    handle = _find_teacher(config.teacher_model, teacher, log)
    create_data.run(config, handle, on_progress=lambda _: None, engine=REPLICAS if teacher == "hash" else None)
    ray.shutdown()


def _find_teacher(model_dir: str, teacher: str, log: str) -> DeploymentHandle:
    """Return the teacher's handle; it is started where no run before has done so."""
    if teacher in serve.status().applications:
        return serve.get_deployment_handle("engine", teacher)
    if teacher == "hash":
        return hash_teacher.start(model_dir, log, DELAY_SECONDS, num_replicas=REPLICAS.num_replicas)
    return counted_teacher.start(model_dir, log, teacher)


if __name__ == "__main__":
    main(*sys.argv[1:])
