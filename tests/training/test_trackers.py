"""Where metrics go: each line once, to what was asked for, and never at the cost of the training."""

import importlib.util
import logging
import sys
import types

import pytest

from raydistill.core import storage
from raydistill.core.errors import ConfigError
from raydistill.training import watch as watch_module
from raydistill.training.rundir import MetricsLog, read_metrics
from raydistill.training.trackers import check_trackers, open_trackers

LINES = [{"step": 0, "validation/loss_nats": 3.0}, {"step": 1, "train/loss_nats": 2.0, "run/resumed_from": "step-0"}]


class _Kept:
    def __init__(self):
        self.lines, self.closed = [], False

    def add(self, step, numbers):
        self.lines.append((step, numbers))
        if step == 1:
            raise ConnectionError("no route")

    def close(self):
        self.closed = True


def test_every_line_reaches_every_tracker_once_and_a_broken_one_only_warns(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(watch_module, "POLL_SECONDS", 0.01)
    kept, seen = _Kept(), []
    with (
        caplog.at_level(logging.WARNING),
        watch_module.watch(str(tmp_path), 2, lambda *progress: seen.append(progress), [kept]),
    ):
        log = MetricsLog(str(tmp_path), 0)
        for line in LINES:
            log.add(line)
            log.write()
    assert kept.lines == [(0, {"validation/loss_nats": 3.0}), (1, {"train/loss_nats": 2.0})] and kept.closed
    assert seen[-1] == (1, 2, LINES[1]) and "did not take step 1: no route" in caplog.text


def test_metrics_of_steps_after_the_checkpoint_are_written_anew(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    for step in range(5):
        log.add({"step": step, "train/loss_nats": float(step)})
    log.write()
    resumed = MetricsLog(str(tmp_path), 2)
    resumed.add({"step": 3, "train/loss_nats": 30.0})
    resumed.write()
    assert [line["train/loss_nats"] for line in read_metrics(str(tmp_path))] == [0.0, 1.0, 2.0, 30.0]


def test_missing_packages_are_named_for_pip(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("wandb", "mlflow") else name)
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"log_to: wandb, mlflow is not installed here: pip install wandb mlflow"):
        check_trackers(["wandb", "tensorboard", "mlflow"])


def test_tracker_that_cannot_be_opened_is_a_fault_of_the_settings(monkeypatch):
    def refuse(_: str) -> None:
        raise PermissionError("no token")

    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(set_experiment=refuse))
    with pytest.raises(ConfigError, match="log_to: mlflow cannot be opened: no token"):
        open_trackers(["mlflow"], "unused", "desk-1", {})


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_tensorboard_files_lie_in_the_runs_folder(tmp_path, place, request):
    log_uri = str(tmp_path) if place == "folder" else f"{request.getfixturevalue('bucket')}/run"
    *_, tracker = open_trackers(["tensorboard"], log_uri, "desk-1", {"seed": 0})
    tracker.add(3, {"train/loss_nats": 1.5})
    tracker.close()
    (name,) = storage.list_names(f"{log_uri}/tensorboard")
    data = storage.read_bytes(f"{log_uri}/tensorboard/{name}")
    assert name.startswith("events.out.tfevents") and b"train/loss_nats" in data


def _record(calls: list):
    """A module that writes down what is called, as deep as it is asked."""

    def note(path: str):
        def call(*arguments, **keywords):
            calls.append((path, arguments, keywords))
            return types.SimpleNamespace(log=note(f"{path}.log"), finish=note(f"{path}.finish"))

        return call

    return note


def test_wandb_and_mlflow_get_run_config_and_numbers(monkeypatch):
    calls: list = []
    note = _record(calls)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=note("init")))
    names = ("set_experiment", "search_runs", "start_run", "log_params", "log_metrics", "end_run")
    fake = types.SimpleNamespace(**{name: note(name) for name in names})
    fake.search_runs = lambda **options: note("search_runs")(**options) and []
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    _, wandb, mlflow = open_trackers(["wandb", "mlflow"], "unused", "desk-1", {"seed": 0})
    for tracker in (wandb, mlflow):
        tracker.add(3, {"train/loss_nats": 1.5})
        tracker.close()
    assert [path for path, _, _ in calls] == ["init", *names[:4], "init.log", "init.finish", *names[4:]]
    assert calls[0][2]["id"] == "desk-1" and calls[0][2]["resume"] == "allow" and calls[0][2]["config"] == {"seed": 0}
    assert calls[3] == ("start_run", (), {"run_name": "desk-1"}) and calls[4] == ("log_params", ({"seed": 0},), {})
    assert calls[5] == ("init.log", ({"train/loss_nats": 1.5},), {"step": 3})
    assert calls[7] == ("log_metrics", ({"train/loss_nats": 1.5},), {"step": 3})


def test_mlflow_goes_on_in_the_run_of_the_same_name(monkeypatch):
    """As MLflow has it: a name is no id, so every start by name is another run, and parameters never change."""
    runs: dict[str, str] = {}

    def search_runs(experiment_names, filter_string, **_):
        name = filter_string.removeprefix('attributes.run_name = "').removesuffix('"')
        found = [types.SimpleNamespace(info=types.SimpleNamespace(run_id=key)) for key in runs if runs[key] == name]
        return found if experiment_names == ["raydistill"] else []

    def start_run(run_id=None, run_name=None):
        assert (run_id is None) != (run_name is None)
        assert run_id is None or run_id in runs
        if run_id is None:
            runs[f"id{len(runs)}"] = str(run_name)

    def log_params(params):
        assert params["num_workers"] == 2, "Changing param values is not allowed"

    fake = types.SimpleNamespace(set_experiment=str, search_runs=search_runs, start_run=start_run)
    fake.log_params = log_params
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    open_trackers(["mlflow"], "unused", "desk-1", {"num_workers": 2})
    open_trackers(["mlflow"], "unused", "desk-2", {"num_workers": 2})
    open_trackers(["mlflow"], "unused", "desk-1", {"num_workers": 1})
    assert list(runs.values()) == ["desk-1", "desk-2"]
