"""`cluster/local.sh` on real parts: jobs on three nodes, a student on a cluster of its own, only S3 between them.

The jobs' cluster has two jobs at the same time: a whole distillation and the recipe's two commands.
"""

import contextlib
import fnmatch
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml

import raydistill
from raydistill import types
from raydistill.core.prompts import load_prompt
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.queries.read import read_queries
from raydistill.registry.versions import list_versions
from tests.loopback import free_port
from tests.processes import ROOT
from tests.tiny import make_other_tiny_model, make_tiny_model
from tests.tiny_task import make_answers_end, write_tiny_task

SCRIPT = ROOT / "cluster/local.sh"
ANALYST = ROOT / "jobs/configs/analyst.toml"
PORTS = ("GCS_PORT", "DASHBOARD_PORT", "STUDENT_GCS_PORT", "STUDENT_DASHBOARD_PORT", "S3_PORT", "JOB_SERVE_PORT")
OWN_SECRET = secrets.token_hex(32)  # whoever has credentials for another store starts it as anybody does


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
            "AWS_ACCESS_KEY_ID": "of-the-user",
            "AWS_SECRET_ACCESS_KEY": OWN_SECRET,
            "AWS_SESSION_TOKEN": OWN_SECRET,
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

    def submit_command(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Submit any command to the jobs' cluster, as `local.sh submit` does with its own."""
        ray = Path(sys.executable).with_name("ray")
        where = ["--address", self.dashboard, "--working-dir", str(ROOT)]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "state/token")}
        return subprocess.run(
            [ray, "job", "submit", *where, "--", *command],
            env={**self.env, **token},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )

    def applications(self) -> set[str]:
        """Return the names of Serve's applications on the jobs' cluster."""
        token = (self.folder / "state/token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=60)
        return set(answer.raise_for_status().json()["applications"])

    def read_json(self, key: str) -> Any:
        """Return an object of the bucket that both clusters share."""
        return json.loads(self.read_object(key))

    def read_object(self, key: str) -> bytes:
        return self._s3().get_object(Bucket="raydistill", Key=key)["Body"].read()

    def list_keys(self) -> list[str]:
        """Return the key of every object of the bucket."""
        pages = self._s3().get_paginator("list_objects_v2").paginate(Bucket="raydistill")
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def _s3(self) -> Any:
        endpoint = f"http://127.0.0.1:{self.env['S3_PORT']}"
        keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=endpoint, **keys)

    def read_all(self) -> Iterator[tuple[str, bytes]]:
        """Yield everything that both clusters have written: state and logs of local.sh and Ray, and the objects."""
        state = self.folder / "state"
        for folder in (state, Path((state / "temp_dir").read_text().strip())):
            for path in folder.rglob("*"):
                if path.is_file() and path not in (state / "token", state / "s3_secret"):
                    with contextlib.suppress(FileNotFoundError):  # Ray renames and removes some
                        yield str(path), path.read_bytes()
        for key in self.list_keys():
            yield f"s3://raydistill/{key}", self.read_object(key)

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.env['DASHBOARD_PORT']}"

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
        status = both.run("status")
        assert status.returncode == 0, status.stdout
        for name in ("head", "worker-1", "worker-2", "student", "s3"):
            assert f"{name}: runs, id " in status.stdout
        assert json.loads(status.stdout[status.stdout.index("{") :])["aliases"] == {}
        yield both
    finally:
        down = both.run("down")
    assert down.returncode == 0, down.stdout
    assert not list((both.folder / "state").glob("*.pid"))


def test_bad_input_ends_the_job_before_anything_starts_in_the_commands_own_words(clusters):
    with ThreadPoolExecutor() as pool:
        misplaced, misspelt = pool.map(clusters.submit, ["train.log_path=/somewhere/runs", "train.num_epoch=1"])
    assert misplaced.returncode != 0 and "train.log_path: /somewhere/runs" in misplaced.stdout
    assert misspelt.returncode != 0 and "did you mean num_epochs" in misspelt.stdout
    for done in (misplaced, misspelt):
        assert "exit code 2" in done.stdout and "teacher: starting" not in done.stdout


def run_recipe(clusters: Clusters) -> list[subprocess.CompletedProcess[str]]:
    """Run the recipe's two commands as jobs: P and queries are the shipped example's, the student another model."""
    folder = clusters.folder
    model, data_file = make_long_tiny_model(folder / "long"), folder / "analyst.jsonl"
    student = make_other_tiny_model(folder / "other")
    where = [f"cluster.shared_dir={folder}", f"cluster.http_port={clusters.env['JOB_SERVE_PORT']}"]
    asking = [f"teacher_model={model}", "num_examples=64", "temperature=1.0", "max_tokens=64", "num_actors=1"]
    random = ["smoke_rows=0", "max_dropped_share=1.0"]  # a random model ends some of its answers only
    training = [f"student_model={student}", f"output_dir={folder}/models/analyst", "num_epochs=1", "max_steps=3"]
    commands = [
        ["jobs.create_data", f"output_file={data_file}", *asking, "teacher.max_model_len=4096", *random, *where],
        ["jobs.train", f"data_file={data_file}", *training, *where],
    ]
    return [clusters.submit_command("python", "-m", *command) for command in commands]


def make_long_tiny_model(folder: Path) -> str:
    """Save a tiny model that can read the example's P (2,872 of its tokens) and ends its answers."""
    make_tiny_model(folder)
    make_answers_end(folder)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), key: 4096}))
    return str(folder)


@pytest.fixture(scope="module")
def side_by_side(clusters):
    """Both jobs at the same time; gives how they ended, and which applications were up at once."""
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(clusters.submit, "train.placement=STRICT_SPREAD"), pool.submit(run_recipe, clusters)]
        together = set()
        while wait(jobs, timeout=1).not_done:
            together = max(together, clusters.applications(), key=len)
    distilled, recipe = (job.result() for job in jobs)
    for done in (distilled, *recipe):
        assert done.returncode == 0, done.stdout
    return distilled, recipe, together


def test_two_jobs_share_a_cluster_and_leave_it_as_it_was(clusters, side_by_side):
    _, _, together = side_by_side
    assert len(together) == 2 and all(name.startswith("teacher-") for name in together), "they never met"
    assert clusters.applications() == set()


def test_a_job_on_three_nodes_distils_and_the_other_cluster_loads_it(clusters, side_by_side):
    done, _, _ = side_by_side
    assert "tiny v0001: 8 held-out queries" in done.stdout, "the job's log is the command's"
    assert "s3://raydistill/reports/tiny/v0001/report.html" in done.stdout
    report = clusters.read_json("reports/tiny/v0001/report.json")
    assert report["counts"]["asked"] == 40 == report["counts"]["kept"] + sum(report["counts"]["dropped"].values())
    assert report["kl"]["served_difference"] < 1e-3
    version = clusters.read_json("models/tiny/v0001/version.json")
    assert version["prompt_digest"] == load_prompt(clusters.folder / "p.json").digest
    keys = clusters.list_keys()
    for pattern in ("datasets/tiny/answers/*.parquet", "datasets/tiny/part-*", "runs/tiny/*/checkpoints/*"):
        assert fnmatch.filter(keys, pattern), pattern
    assert not (clusters.folder / "storage").exists(), "the task file's own place was used"
    status = httpx.get(f"{clusters.url}/status", timeout=30).json()
    assert status["aliases"]["tiny/final"].startswith("tiny/v0001@")
    with raydistill.ServiceClient(clusters.url) as service:
        client = service.create_sampling_client(model_path="raydistill://tiny/final")
        params = types.SamplingParams(max_tokens=4, temperature=0.0)
        result = client.sample(types.ModelInput.from_ints([5, 6, 7]), 1, params).result(60)
    assert result.model == status["aliases"]["tiny/final"]


def test_the_recipes_two_commands_end_in_a_published_version_beside_it(clusters, side_by_side):
    _, (asked, trained), _ = side_by_side
    assert "of 64 answers kept" in asked.stdout and "analyst.toml" in asked.stdout
    prompt = load_prompt(ANALYST.with_suffix(".prompt.md"))
    data_file = clusters.folder / "analyst.jsonl"
    assert read_manifest(str(data_file)).prompt_digest == prompt.digest
    assert prompt.messages[0]["content"][:200] not in data_file.read_text()
    examples, _ = read_examples(str(data_file))
    queries = {query.messages[0]["content"] for query in read_queries(ANALYST.with_suffix(".queries.jsonl"))}
    assert {example.messages[0]["content"] for example in examples} <= queries
    (version,) = list_versions(str(clusters.folder / "models/analyst"))
    assert version.prompt_digest == prompt.digest and version.base_model == str(clusters.folder / "other")
    assert "another tokenizer" in trained.stdout, "a student of another family learns from the teacher's text"


def test_the_same_job_again_asks_and_trains_nothing(clusters, side_by_side):
    done = clusters.submit("train.placement=STRICT_SPREAD")
    assert done.returncode == 0, done.stdout
    assert "teacher: starting" not in done.stdout
    assert "this very run's result already" in done.stdout


def test_no_secret_is_in_a_log_or_an_object(clusters, side_by_side):
    state = clusters.folder / "state"
    hidden = [(state / name).read_bytes().strip() for name in ("token", "s3_secret")]
    assert all(len(secret) == 64 for secret in hidden)
    written = dict(clusters.read_all())
    for name in ("*/head.log", "*/logs/gcs_server.out", "s3://raydistill/reports/tiny/v0001/report.json"):
        assert fnmatch.filter(written, name), f"{name} was not searched"
    holders = [name for name, data in written.items() for secret in (*hidden, OWN_SECRET.encode()) if secret in data]
    assert holders == []
