"""One Ray cluster and one hash for a teacher, behind real Serve, for all files of this folder."""

import pytest

from jobs.runtime import ClusterConfig, connect, disconnect
from tests.teacher import hash_teacher


@pytest.fixture(scope="package")
def teacher(tmp_path_factory: pytest.TempPathFactory, model_dir: str):
    """The handle of a hash teacher and its log; the cluster may be the session's, so it is taken away at the end.

    In a cluster of our own Serve goes too: it keeps its client, and where the next cluster of the session has the same
    job id, `serve.status()` would ask a controller that is gone.
    """
    import ray
    from ray import serve

    config = ClusterConfig.model_validate({"object_store_mib": 100})
    is_ours = not ray.is_initialized()
    connect(config)
    log = tmp_path_factory.mktemp("teacher") / "asked"
    yield hash_teacher.start(model_dir, str(log)), log
    serve.delete("hash")
    if is_ours:
        serve.shutdown()
        disconnect(config)
