"""The driver of a run: the hash teacher, started once and left running, and create_data on a cluster that is there."""

import sys

import ray
from ray import serve

from jobs import create_data
from jobs.data_config import CreateDataConfig
from jobs.runtime import ClusterConfig, connect
from tests.teacher import hash_teacher


def main(config_json: str, log: str, delay_seconds: str) -> None:
    """Create the dataset; RAY_ADDRESS says on which cluster."""
    config = CreateDataConfig.model_validate_json(config_json)
    connect(ClusterConfig.model_validate({}))
    serve.start(http_options={"location": "NoServer"})
    if "hash" not in serve.status().applications:
        hash_teacher.start(config.teacher_model, log, float(delay_seconds), num_replicas=2)
    handle = serve.get_deployment_handle("engine", "hash")
    create_data.run(config, handle, on_progress=lambda _: None)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
