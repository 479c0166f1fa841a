"""`make test` runs the tests in two processes, of which only one may hold engines and Ray clusters."""

import os
import re
import subprocess
import sys
from pathlib import Path

HEAVY = ["tests/engine/test_status.py", "tests/serving/test_folder.py", "tests/training/test_schedule.py"]
LIGHT = ["tests/core/test_patience.py", "tests/core/test_topk.py", "tests/teacher/test_routing.py"]


def test_what_is_heavy_runs_in_one_process_and_the_rest_beside_it():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-n", "2", "-vv", *HEAVY, *LIGHT]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    ran = set(re.findall(r"^\[(gw\d)\].* PASSED ([^:]+)::", done.stdout, re.M))
    assert {path for _, path in ran} == {*HEAVY, *LIGHT}
    assert {process for process, _ in ran} == {"gw0", "gw1"}
    assert len({process for process, path in ran if path in HEAVY}) == 1, ran
