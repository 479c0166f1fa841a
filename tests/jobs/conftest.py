"""What tests of create_data share: a hash for a teacher, behind real Serve."""

import pytest

from tests.teacher import hash_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, model_dir: str, cluster: bool):
    """The handle of a hash teacher and its log; the cluster may be the session's, so it is taken away at the end.

    In a cluster of our own Serve goes too: it keeps its client, and where the next cluster of the session has the same
    job id, `serve.status()` would ask a controller that is gone.
    """
    from ray import serve

    log = tmp_path_factory.mktemp("teacher") / "asked"
    yield hash_teacher.start(model_dir, str(log)), log
    serve.delete("hash")
    if cluster:
        serve.shutdown()
