"""Ray Train with DeepSpeed on two workers: goes on after a kill, refuses another run's folder, moves the loss."""

import json
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from raydistill.core.errors import ConflictError, DatasetError, TrainingError
from raydistill.training.batches import EncodedRow
from raydistill.training.config import TrainConfig
from raydistill.training.fit import FitResult, choose_dtype, fit, has_bfloat16_units
from raydistill.training.rundir import read_metrics
from tests.tiny import make_tiny_model

ANSWERS = [[100, 101, 102, 2], [101, 101, 2], [102, 2]]
ROWS = [EncodedRow(f"r{index}", [1, 20 + index, 30, 3 * index], ANSWERS[index % 3]) for index in range(40)]


def _config(model_dir: str, log_path: Path, **changes) -> TrainConfig:
    values = {
        "data_file": "rows.jsonl",
        "student_model": model_dir,
        "log_path": str(log_path),
        "learning_rate": 0.003,
        "lora_rank": 4,
        "num_epochs": 30,
        "checkpoint_every": 20,
        "max_failures": 1,
        "dtype": "float32",
    }
    return TrainConfig.model_validate({**values, **changes})


def _kill_a_worker() -> bool:
    """Kill one of this test's own Ray Train workers; False where there is none."""
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            process.kill()
            return True
    return False


def _weights(adapter_dir: str):
    return load_file(Path(adapter_dir) / "adapter_model.safetensors")


def test_run_goes_on_when_a_worker_is_killed_and_equals_an_undisturbed_one(cluster, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("raydistill.training.fit.POLL_SECONDS", 0.02)  # to catch a run of two seconds in its middle
    calm = fit(_config(model_dir, tmp_path / "calm"), ROWS[8:], ROWS[:8], model_dir)
    seen, killed = [], []

    def kill_one(done: int, total: int, line: dict) -> None:
        seen.append((done, total))
        if not killed and done >= 25 and _kill_a_worker():
            killed.append(done)

    disturbed = fit(_config(model_dir, tmp_path / "killed"), ROWS[8:], ROWS[:8], model_dir, kill_one)
    assert killed and killed[0] < 120 and seen[-1] == (120, 120)
    before, after = _weights(calm.adapter_dir), _weights(disturbed.adapter_dir)
    assert set(before) == set(after) and len(before) == 28
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-4, rtol=1e-3)
    _check_records(tmp_path / "killed", disturbed)
    again = fit(_config(model_dir, tmp_path / "killed", num_workers=1), ROWS[8:], ROWS[:8], model_dir)
    assert again.metrics == disturbed.metrics
    with pytest.raises(ConflictError, match="another learning_rate, rows"):
        fit(_config(model_dir, tmp_path / "killed", learning_rate=0.1), ROWS[9:], ROWS[:8], model_dir)


def _check_records(folder: Path, result: FitResult) -> None:
    lines = read_metrics(str(folder))
    assert [line["step"] for line in lines] == list(range(121))
    assert [line["step"] for line in lines if "validation/loss_nats" in line] == list(range(0, 121, 20))
    assert lines[-1]["train/loss_nats"] < 0.5 * lines[1]["train/loss_nats"]
    assert lines[1]["train/learning_rate"] == 0.003 and lines[120]["train/learning_rate"] == pytest.approx(0.003 / 120)
    assert all(line["train/completion_tokens_per_second"] > 0 for line in lines[1:])
    assert result.num_modules == 14 and result.metrics["steps"] == 120
    assert result.metrics["validation_loss_nats"] < result.metrics["validation_loss_nats_before"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    resolved = json.loads((folder / "config.json").read_text())["config"]
    assert resolved["dtype"] == "float32" and resolved["num_steps"] == 120


def test_training_fails_with_its_reason_when_the_loss_is_not_finite(cluster, tmp_path):
    broken = make_tiny_model(tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    config = _config(broken, tmp_path / "run", micro_batch_size=1, max_failures=0, num_epochs=1)
    with pytest.raises(TrainingError, match=r"The loss became nan.*learning_rate.*goes on from the last checkpoint"):
        fit(config, ROWS[8:], [], broken)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:7], "7 rows for training, fewer than one batch of 8"),
        ([*ROWS, EncodedRow("empty", [1], [])], "1 rows have no prompt or no response, the first is empty"),
        ([*ROWS, EncodedRow("bare", [], [1])], "1 rows have no prompt or no response, the first is bare"),
    ],
)
def test_rows_are_refused_before_anything_starts_when_they_cannot_be_trained_on(model_dir, tmp_path, rows, message):
    with pytest.raises(DatasetError, match=message):
        fit(_config(model_dir, tmp_path / "run"), rows, [], model_dir)
    assert not (tmp_path / "run").exists()


def test_dtype_is_bfloat16_only_where_there_are_units_for_it(tmp_path, monkeypatch):
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("model name : x\nflags : fpu avx512f avx512_bf16 avx512_vbmi2\n")
    assert has_bfloat16_units(cpu_info)
    cpu_info.write_text("model name : x\nflags : fpu avx2 avx512f\n")
    assert not has_bfloat16_units(cpu_info) and not has_bfloat16_units(tmp_path / "none")
    monkeypatch.setattr("raydistill.training.fit.has_bfloat16_units", lambda: False)
    unset = TrainConfig.model_validate({"data_file": "d", "student_model": "m"})
    assert choose_dtype(unset, use_gpu=True) == "bfloat16" and choose_dtype(unset, use_gpu=False) == "float32"
    assert choose_dtype(unset.model_copy(update={"dtype": "float32"}), use_gpu=True) == "float32"
