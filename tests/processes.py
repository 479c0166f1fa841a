"""Processes: a job as a user starts it, a few lines of code, those below another one, and where a program lies."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def find_program(name: str) -> str | None:
    """Return where a program is: beside Python, where the development requirements put it, or else on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def run_job(
    job: str, *arguments: str, cwd: Path = ROOT, timeout_seconds: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs.<job>`, in the project's folder or another one, and return how it ended."""
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def ray_address() -> str:
    """Return the address of the cluster this process is connected to, for a job's RAY_ADDRESS."""
    import ray

    return ray.get_runtime_context().gcs_address


def run_code(code: str) -> str:
    """Run code in a fresh interpreter, which must end well, and return what it printed."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def descendants(pid: int) -> list[int]:
    """Return the ids of the processes that a process started, and those that these did."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def command_of(pid: int) -> str:
    """Return a process's command line; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
