"""cluster/local.sh stops what it started and nothing else; what it needs is told when it is missing."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT, find_program

SCRIPT = ROOT / "cluster/local.sh"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"RAYDISTILL_STATE": str(folder), "RAYDISTILL_BIN": str(folder / "bin")}
    return subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False)


def write_pid_file(folder: Path, process: subprocess.Popen[bytes], start: str | None = None) -> None:
    """Record a process as `up` does: its id, its start and the boot."""
    words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (folder / "head.pid").write_text(f"{process.pid} {start or words[19]} {boot}\n")


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_down_stops_a_process_when_it_was_started_here(tmp_path, sleeper):
    write_pid_file(tmp_path, sleeper)
    done = run(tmp_path, "down")
    assert (done.returncode, done.stdout) == (0, "stopped head\n"), done.stderr
    assert sleeper.wait(timeout=5) != 0
    assert not list(tmp_path.glob("*.pid"))


def test_down_leaves_a_process_when_its_id_was_given_to_another(tmp_path, sleeper):
    write_pid_file(tmp_path, sleeper, start="1")
    assert run(tmp_path, "down").returncode == 0
    assert sleeper.poll() is None
    assert not list(tmp_path.glob("*.pid"))


def test_down_says_so_when_nothing_is_up(tmp_path):
    done = run(tmp_path, "down")
    assert (done.returncode, done.stdout) == (0, "nothing is up\n")


@pytest.mark.parametrize("command", ["status", "submit"])
def test_command_says_what_to_do_when_nothing_is_up(tmp_path, command):
    done = run(tmp_path, command)
    assert done.returncode == 1
    assert "nothing is up" in done.stderr and "local.sh up" in done.stderr


def test_up_names_make_setup_when_there_is_no_environment(tmp_path):
    done = run(tmp_path, "up")
    assert done.returncode == 1
    assert "make setup" in done.stderr


def test_usage_is_shown_when_the_command_is_unknown(tmp_path):
    done = run(tmp_path, "start")
    assert done.returncode == 2
    assert "local.sh submit" in done.stderr


@pytest.mark.parametrize("command", [["bash", "-n"], ["shellcheck"]], ids=["bash", "shellcheck"])
def test_script_is_clean(command):
    program = find_program(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not at hand")
    done = subprocess.run([program, *command[1:], SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
