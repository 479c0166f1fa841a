"""A job that is told to end (SIGTERM: a supervisor, Kubernetes) leaves its cluster in order and no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import ROOT

JOB = """
import time
from jobs.runtime import ClusterConfig, connect, disconnect
config = ClusterConfig.model_validate({"num_cpus": 4, "object_store_mib": 80})
connect(config)
print("up", flush=True)
try:
    time.sleep(600)
finally:
    disconnect(config)
    print("ended in order", flush=True)
"""


def children(mark: str) -> list[int]:
    """Return the ids of the processes that carry a mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_job_told_to_end_stops_its_cluster_first():
    mark = f"RAYDISTILL_TEST_MARK={os.getpid()}-{time.monotonic_ns()}"
    name, _, value = mark.partition("=")
    env = {**os.environ, name: value}
    env.pop("RAY_ADDRESS", None)
    job = subprocess.Popen([sys.executable, "-c", JOB], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "up\n"
    assert len(children(mark)) > 3
    job.send_signal(signal.SIGTERM)
    rest, _ = job.communicate(timeout=60)
    assert rest == "ended in order\n"
    assert job.returncode == 128 + signal.SIGTERM
    deadline = time.monotonic() + 90  # agents of Ray notice after a while that their node is gone
    while left := children(mark):
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text()[:80] for pid in left]
        time.sleep(0.2)
