"""`python -m jobs.JOB --help` lists every key that the job reads, with what is allowed and what holds by default."""

import os
import re
import subprocess
import sys

import pytest

from jobs.data_config import CreateDataConfig
from tests.processes import ROOT

JOBS = {
    "create_data": ("  num_examples: a whole number at least 1, required", "[teacher]", "[cluster]"),
    "train": ("  zero_stage: one of 0, 1, 2, 3 = 2", "[cluster]"),
    "distill": ("[task]   on the command line: task.KEY=V", "  expand.enabled: true or false = false", "[evaluate]"),
    "evaluate": ("[evaluate]",),
    "serve": ("  adapter_mode: one of 'lora', 'merged' = \"lora\"", "  autoscaling.max_replicas: a whole number"),
    "import_adapter": ("  base_model: text, required",),
}


@pytest.mark.parametrize("job", JOBS)
def test_help_names_every_table_and_starts_nothing(job: str):
    command = [sys.executable, "-X", "importtime", "-m", f"jobs.{job}", "--help"]
    env = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"python -m jobs.{job} [TASK.toml] [KEY=VALUE ...]\n")
    for text in JOBS[job]:
        assert f"\n{text}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    heavy = {"ray", "torch", "vllm", "transformers"}
    assert not heavy & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_help_lists_the_keys_of_tables_in_tables():
    done = subprocess.run(
        [sys.executable, "-m", "jobs.create_data", "-h"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    section = re.split(r"^\[.*$", done.stdout, flags=re.M)[1]
    keys = set(re.findall(r"^  (\w[\w.]*):", section, re.M))
    assert set(CreateDataConfig.model_fields) <= keys
    assert {"quality.json_schema", "judge.threshold", "prices.input", "expand.languages"} <= keys
