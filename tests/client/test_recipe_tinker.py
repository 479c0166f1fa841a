"""First contact with the public `tinker` SDK: unmodified, from a virtual environment of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import raydistill
from raydistill import types
from raydistill.core.models import cache_dir
from tests.processes import ROOT

SDK = "tinker==0.38.0"
SCRIPT = ROOT / "tests" / "client" / "tinker_script.py"
TEXT = "I lost my parcel, number 6."
NO_INDEX = ("from versions: none", "NewConnectionError", "ConnectTimeoutError", "NameResolutionError")


def run(*command: str | Path, timeout_seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


@pytest.fixture(scope="module")
def sdk_python():
    """The interpreter of an environment with the SDK, which is made once and kept: it is 350 MB."""
    folder = cache_dir() / "tests" / SDK
    python = folder / "bin" / "python"
    if python.is_file() and run(python, "-c", "import tinker").returncode == 0:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    made = run(sys.executable, "-m", "venv", folder)
    assert made.returncode == 0, made.stderr
    installed = run(python, "-m", "pip", "install", "-q", SDK)
    if installed.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        if any(sign in installed.stderr for sign in NO_INDEX):
            pytest.skip(f"{SDK} cannot be installed, the package index is not reached: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    return python


def test_sdk_samples_the_student_by_its_path(sdk_python, world):
    quiet = {"TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    done = run(sdk_python, SCRIPT, world.url, "tml-anything", "tinker://tiny/final", TEXT, timeout_seconds=120, **quiet)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["version"] == SDK.partition("==")[2]
    assert "404" in told["unknown"] and "tiny/final" in told["unknown"]

    client = raydistill.ServiceClient(world.url).create_sampling_client(model_path="raydistill://tiny/final")
    tokenizer = client.get_tokenizer()
    params = types.SamplingParams(max_tokens=6, temperature=0.0, stop=[])
    ours = client.sample(types.ModelInput.from_ints(tokenizer.encode(TEXT)), sampling_params=params).result(60)
    assert ours.model.startswith("tiny/v")
    (expected,) = ours.sequences
    for sequence in told["sequences"]:
        assert sequence["tokens"] == expected.tokens
        assert sequence["logprobs"] == pytest.approx(expected.logprobs, abs=1e-3)
    assert told["text"] == tokenizer.decode(expected.tokens)
