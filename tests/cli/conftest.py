"""A registry with three versions, and a command line that is watched."""

import json

import pytest
from typer.testing import CliRunner

from raydistill.cli.app import app
from raydistill.core.records import ProbePoint
from raydistill.registry.aliases import move_alias
from raydistill.registry.publish import publish
from tests.drafts import make_draft, write_bare_adapter
from tests.moto_bucket import open_bucket


@pytest.fixture(scope="module")
def bucket():
    with open_bucket("cli") as uri:
        yield uri


@pytest.fixture(params=["folder", "s3"])
def root(request, tmp_path):
    """ROOT with the model `triage`: v0001 and v0002 verifiable, v0003 not; `final` is v0001, `candidate` v0002."""
    root = str(tmp_path) if request.param == "folder" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return fill(root, tmp_path)


@pytest.fixture
def folder(tmp_path):
    return fill(str(tmp_path), tmp_path)


def fill(root, tmp_path):
    uri = f"{root}/models/triage"
    adapter = write_bare_adapter(tmp_path / "adapter", b"weights")
    metrics = {"validation_loss_nats": 0.6123456, "rows": {"train": 180}, "log_path": "s3://bucket/runs/triage/0123"}
    for verifiable in (True, True, False):
        probe = [ProbePoint([1, 2, 3], 4, -9.0, -1.0 if verifiable else -8.9)]
        publish(uri, make_draft(verifiable=verifiable, probe=probe, metrics=metrics), adapter)
    move_alias(uri, "final", "v0001")
    move_alias(uri, "candidate", "v0002")
    return root


@pytest.fixture
def run(monkeypatch):
    """A function that runs a command; what it told on standard output, which holds nothing but that."""
    for name in ("RAYDISTILL_STORAGE", "RAYDISTILL_BASE_URL", "RAYDISTILL_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*words, status=0, **environment):
        result = CliRunner().invoke(app, words, env={"COLUMNS": "80", **environment})
        assert result.exit_code == status, (result.output, result.exception)
        if status:
            assert result.stdout == "", "an error is told on standard error alone"
            assert "Traceback" not in result.stderr
            return result.stderr
        if "--json" in words:
            return json.loads(result.stdout)
        assert max(map(len, result.stdout.splitlines())) <= 80 or "models/triage" in result.stdout
        return result.stdout

    return invoke
