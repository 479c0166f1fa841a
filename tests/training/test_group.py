"""What the driver asks Ray for, and what it says when workers fail: the cause, and what needs less memory."""

import signal
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train.torch import TorchTrainer

from raydistill.core.errors import TrainingError
from raydistill.training import group, loop
from raydistill.training.config import TrainConfig
from raydistill.training.group import _first_cause, train_on_workers
from raydistill.training.steps import Setting
from tests.training.runs import make_job


@pytest.mark.parametrize("placement", ["PACK", "STRICT_SPREAD"])
def test_workers_are_asked_for_as_configured(model_dir, tmp_path, monkeypatch, placement):
    asked = []

    def take(*_, scaling_config, **__):
        asked.append(scaling_config)
        raise TrainingError("that is enough")

    monkeypatch.setattr("ray.train.torch.TorchTrainer", take)
    config = TrainConfig(
        data_file="d.jsonl", student_model="m", num_workers=3, threads_per_worker=2, placement=placement
    )
    with pytest.raises(TrainingError, match="enough"):
        train_on_workers(config, make_job(model_dir, str(tmp_path)), use_gpu=False)
    (scaling,) = asked
    assert (scaling.num_workers, scaling.placement_strategy) == (3, placement)
    assert (scaling.use_gpu, scaling.resources_per_worker) == (False, {"CPU": 2})


def test_cause_is_our_own_error_where_other_workers_only_lost_their_peer():
    ours = SimpleNamespace(cause=TrainingError("Memory is short"))
    failures = {0: RuntimeError("Connection closed by peer"), 1: ours}
    assert _first_cause(SimpleNamespace(worker_failures=failures)) == "TrainingError: Memory is short"


def test_worker_that_died_without_a_word_may_have_been_killed_for_memory():
    text = _first_cause(SimpleNamespace(worker_failures={0: ActorDiedError()}))
    assert text.startswith("ActorDiedError") and "memory ran out: set micro_batch_size=1" in text
    assert "memory" not in _first_cause(SimpleNamespace(worker_failures={}, controller_failure=ValueError("no room")))


def test_ctrl_c_stays_pythons_own(monkeypatch, model_dir, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    assert callable(TorchTrainer._register_sigint_handler)  # ours stands in its place
    monkeypatch.setattr(TorchTrainer, "fit", lambda trainer: trainer._register_sigint_handler(None))
    monkeypatch.setattr(group, "_take_over", lambda *_: None)
    config = TrainConfig.model_validate({"data_file": "d", "student_model": model_dir})
    group.train_on_workers(config, make_job(model_dir, str(tmp_path)), use_gpu=False)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_worker_that_runs_out_of_memory_says_what_fits(model_dir, monkeypatch, error):
    def run_out(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop, "_Run", run_out)
    job = make_job(model_dir, "unused")
    with pytest.raises(TrainingError, match=r"Memory is short.*=bfloat16, or num_workers=1, or micro_batch_size=1"):
        loop.train(job, Setting(0, 2, torch.device("cpu"), "float32"))
    monkeypatch.setattr(loop, "_Run", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        loop.train(job, Setting(0, 2, torch.device("cpu"), "float32"))
