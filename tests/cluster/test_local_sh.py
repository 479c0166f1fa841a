"""cluster/local.sh stops what it started and nothing else; what it needs is told when it is missing."""

import os
import subprocess
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.cluster import stand_in
from tests.core.loopback_store import serving
from tests.loopback import free_port
from tests.processes import ROOT, find_program

SCRIPT = ROOT / "cluster/local.sh"
PORTS = ("GCS_PORT", "DASHBOARD_PORT", "STUDENT_GCS_PORT", "STUDENT_DASHBOARD_PORT", "S3_PORT", "JOB_SERVE_PORT")


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"RAYDISTILL_STATE": str(folder), "RAYDISTILL_BIN": str(folder / "bin"), **settings}
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


def write_config(folder: Path, model: Path) -> dict[str, str]:
    """Write a student's configuration, and give the settings that lead to it and to ports that nobody uses."""
    config = {
        "http_options": {"port": free_port()},
        "applications": [{"name": "student", "args": {"model": str(model)}}],
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    return {"STUDENT_CONFIG": str(folder / "serve.yaml"), **{name: str(free_port()) for name in PORTS}}


def test_up_names_a_model_that_is_not_there_before_anything_starts(tmp_path):
    settings = write_config(tmp_path, tmp_path / "gone")
    done = run(tmp_path, "up", RAYDISTILL_BIN=str(Path(sys.executable).parent), **settings)
    assert done.returncode == 1
    assert f"model: {tmp_path}/gone is no folder here" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["serve.yaml"]


@pytest.fixture
def programs(tmp_path):
    """What `up` starts, without Ray: a stand-in that knows of a student that failed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    pretend = f"exec {sys.executable} {stand_in.__file__}"
    for name in ("python", "serve", "ray", "moto_server"):
        command = {"python": f"exec {sys.executable}", "serve": "exit 0"}.get(name, pretend)
        (folder / name).write_text(f'#!/bin/sh\n{command} "$@"\n')
        (folder / name).chmod(0o755)


def test_up_and_status_say_why_serve_has_given_the_student_up(tmp_path, programs, sleeper):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    settings = write_config(tmp_path, tmp_path / "model")
    done = run(tmp_path, "up", WORKERS="0", **settings)
    assert done.returncode == 1
    assert "the student: student is DEPLOY_FAILED:\n" in done.stderr and stand_in.REASON in done.stderr
    assert "stopped s3" in done.stdout and not {path.name for path in tmp_path.iterdir()} & {"token", "s3_secret"}
    write_pid_file(tmp_path, sleeper)
    (tmp_path / "token").write_text("of the dashboard")
    server = ThreadingHTTPServer(("127.0.0.1", 0), stand_in.Answers)
    with serving(server):
        done = run(tmp_path, "status", **settings | {"STUDENT_DASHBOARD_PORT": str(server.server_port)})
    assert done.returncode == 1 and stand_in.REASON in done.stdout


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
