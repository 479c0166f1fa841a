"""The console script as a process of its own."""

import importlib
import json
import os
import subprocess
import sys
import threading
import tomllib

from raydistill.registry.aliases import read_aliases
from tests.processes import ROOT, run_code


def test_the_script_in_a_process_of_its_own(folder):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["raydistill"]
    module, _, name = declared.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAYDISTILL_STORAGE": folder}

    def call(*words):
        code = f"import sys; from {module} import {name}; sys.exit({name}())"
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    done = call("promote", "triage", "v0002", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["to"] == "v0002"
    done = call("show", "triage", "v0007")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_two_scripts_at_once_lose_no_move(folder):
    """Both may win, one after the other; whatever was told as done is in the history."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAYDISTILL_STORAGE": folder}
    done = []

    def call(label):
        command = [sys.executable, "-m", "raydistill.cli", "promote", "triage", label, "--force"]
        done.append(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False))

    threads = [threading.Thread(target=call, args=(label,)) for label in ("v0002", "v0003")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(process.returncode for process in done)
    moves = read_aliases(f"{folder}/models/triage").moves("final")
    assert codes in ([0, 0], [0, 2])
    assert len(moves) == 1 + codes.count(0)
    assert [move["from"] for move in moves] == [None, *(move["to"] for move in moves[:-1])]


def test_the_script_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from raydistill.cli import app\n"
        "heavy = {'ray', 'torch', 'vllm', 'deepspeed', 'transformers', 'pyarrow', 'boto3', 'pydantic', 'jobs'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_code(code) == "[]"
