"""`make test` runs the tests in two processes, of which only one may hold engines."""

import os
import re
import subprocess
import sys
from pathlib import Path

ENGINES = ["tests/engine/test_status.py", "tests/jobs/test_task.py", "tests/jobs/test_places.py"]
OTHERS = ["tests/core/test_patience.py", "tests/core/test_topk.py", "tests/teacher/test_rows.py"]


def test_engines_are_in_one_process_and_the_rest_beside_it():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-n", "2", "-vv", *ENGINES, *OTHERS]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    ran = set(re.findall(r"^\[(gw\d)\].* PASSED ([^:]+)::", done.stdout, re.M))
    assert {path for _, path in ran} == {*ENGINES, *OTHERS}
    assert {process for process, _ in ran} == {"gw0", "gw1"}
    assert len({process for process, path in ran if path in ENGINES}) == 1, ran


def test_no_code_joins_whichever_cluster_happens_to_run():
    root, inits = Path(__file__).parents[1], []
    for path in (path for folder in ("jobs", "raydistill", "tests") for path in (root / folder).rglob("*.py")):
        inits += [(path, call) for call in re.findall(r"\bray\.init\(\s*([\w.]*)", path.read_text("utf-8"))]
    assert inits
    assert [str(path) for path, argument in inits if argument != "address" and path != Path(__file__)] == []
