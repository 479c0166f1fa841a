"""How a command ends: 2 for bad input alone, 1 once something was started or written, 130 for Ctrl-C."""

import signal
import subprocess
import sys

import pytest

from jobs import distill, runtime
from raydistill.core.errors import CapacityError, ConfigError, ConflictError, NotFoundError
from tests.processes import ROOT
from tests.tiny_task import write_tiny_task


@pytest.fixture
def run_main(monkeypatch):
    """Run a job's main as a shell does; gives its status."""
    monkeypatch.setattr(runtime, "set_up_logging", lambda: None)

    def run(main, *argv):
        monkeypatch.setattr("sys.argv", ["job", *argv])
        with pytest.raises(SystemExit) as ended:
            runtime.run_main(main)
        return ended.value.code

    return run


@pytest.mark.parametrize("error", [ConfigError, NotFoundError, ConflictError, CapacityError])
def test_bad_input_is_status_2_until_work_has_begun(run_main, capsys, error):
    def refuse(_):
        raise error("this is wrong")

    def begin(_):
        runtime.begin_work()
        raise error("this is wrong")

    assert (run_main(refuse), run_main(begin), run_main(refuse)) == (2, 1, 2)
    assert capsys.readouterr().err == 3 * "error: this is wrong\n"


def test_distill_that_fails_after_its_first_write_is_status_1(run_main, monkeypatch, tmp_path):
    task_file = str(write_tiny_task(tmp_path, 8000))
    for name in ("connect", "require_shared", "require", "_count_gpus", "stop_student", "disconnect"):
        monkeypatch.setattr(distill, name, lambda *_, **__: None)
    monkeypatch.setattr(distill, "_require_room", lambda *_: None)
    monkeypatch.setattr(distill, "start_http", lambda _: "http://127.0.0.1:1")

    def lose_race(*_):
        raise ConflictError("somebody else moved it first")

    monkeypatch.setattr(distill, "_ask_teacher", lose_race)
    assert run_main(distill.main, task_file) == 1
    assert (tmp_path / "storage" / "prompts").exists()
    monkeypatch.setattr(distill, "require", lambda *_, **__: lose_race())
    assert run_main(distill.main, task_file) == 2


def test_ctrl_c_ends_without_a_traceback():
    code = (  # a shell's background jobs, and what they start, ignore the signal
        "import signal, time\nfrom jobs.runtime import run_main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def main(_):\n    print('up', flush=True)\n    time.sleep(60)\nrun_main(main)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)
    assert job.stdout is not None and job.stdout.readline() == "up\n"
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130
    assert said == "interrupted; the same command goes on where this one ended\n"
