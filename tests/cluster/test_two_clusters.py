"""`cluster/local.sh` on real parts: jobs on three nodes, a student on a cluster of its own, only S3 between them."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

import raydistill
from raydistill import types
from tests.loopback import free_port
from tests.processes import ROOT
from tests.tiny_task import write_tiny_task

SCRIPT = ROOT / "cluster/local.sh"
PORTS = ("GCS_PORT", "DASHBOARD_PORT", "STUDENT_GCS_PORT", "STUDENT_DASHBOARD_PORT", "S3_PORT", "JOB_SERVE_PORT")


class Clusters:
    """Both clusters, by the commands that a user types."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.task_file = write_tiny_task(folder, self.port)
        config = yaml.safe_load((ROOT / "cluster/serve.student.yaml").read_text())
        config["http_options"]["port"] = self.port
        args = config["applications"][0]["args"]
        args |= {"model": str(folder / "base"), "dtype": "float32", "max_model_len": 384, "max_num_seqs": 16}
        args |= {"max_lora_rank": 8, "poll_seconds": 0.5}
        (folder / "serve.yaml").write_text(yaml.safe_dump(config))
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        self.env |= {name: str(free_port()) for name in PORTS}
        self.env |= {
            "RAYDISTILL_BIN": str(Path(sys.executable).parent),
            "RAYDISTILL_STATE": str(folder / "state"),
            "STUDENT_CONFIG": str(folder / "serve.yaml"),
            "SHARED_DIR": str(folder),
        }

    def run(self, *arguments: str, timeout_seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run local.sh; what it printed is in stdout, errors too."""
        return subprocess.run(
            [SCRIPT, *arguments],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("submit", str(self.task_file), *arguments, timeout_seconds=600)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    both = Clusters(tmp_path_factory.mktemp("clusters"))
    up = both.run("up")
    try:
        assert up.returncode == 0, up.stdout
        assert "3 nodes" in up.stdout
        yield both
    finally:
        down = both.run("down")
    assert down.returncode == 0, down.stdout
    assert not list((both.folder / "state").glob("*.pid"))


def test_places_of_one_machine_alone_are_refused_before_anything_starts(clusters):
    done = clusters.submit("train.log_path=/somewhere/runs")
    assert done.returncode != 0
    assert "train.log_path: /somewhere/runs" in done.stdout
    assert "teacher: starting" not in done.stdout


def test_a_misspelt_key_fails_the_job_with_the_commands_own_words(clusters):
    done = clusters.submit("train.num_epoch=1")
    assert done.returncode != 0
    assert "train.num_epoch" in done.stdout and "did you mean num_epochs" in done.stdout


def test_a_job_on_three_nodes_distils_and_the_other_cluster_loads_it(clusters):
    done = clusters.submit("train.placement=STRICT_SPREAD")
    assert done.returncode == 0, done.stdout
    assert "tiny v0001: 8 held-out queries" in done.stdout, "the job's log is the command's"
    assert "s3://raydistill/reports/tiny/v0001/report.html" in done.stdout
    status = httpx.get(f"{clusters.url}/status", timeout=30).json()
    assert status["aliases"]["tiny/final"].startswith("tiny/v0001@")
    with raydistill.ServiceClient(clusters.url) as service:
        client = service.create_sampling_client(model_path="raydistill://tiny/final")
        params = types.SamplingParams(max_tokens=4, temperature=0.0)
        result = client.sample(types.ModelInput.from_ints([5, 6, 7]), 1, params).result(60)
    assert result.model == status["aliases"]["tiny/final"]


def test_the_same_job_again_asks_and_trains_nothing(clusters):
    done = clusters.submit("train.placement=STRICT_SPREAD")
    assert done.returncode == 0, done.stdout
    assert "teacher: starting" not in done.stdout
    assert "this very run's result already" in done.stdout
