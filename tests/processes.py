"""Python in a process of its own: a job as a user starts it, or a few lines of code."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_job(job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs.<job>` in the project's folder and return how it ended."""
    command = [sys.executable, "-m", f"jobs.{job}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def run_code(code: str) -> str:
    """Run code in a fresh interpreter, which must end well, and return what it printed."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
