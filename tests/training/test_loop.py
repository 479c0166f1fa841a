"""The training loop: best adapter kept, damaged checkpoints passed over, every stage the same training."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raydistill.core.errors import TrainingError
from raydistill.training.rundir import read_metrics, take_failure
from raydistill.training.saved import fetch_checkpoint, find_checkpoint, list_checkpoints, read_state
from raydistill.training.schedule import Schedule
from tests.training import runs as run_settings


@pytest.fixture(scope="module")
def runs(gloo_results):
    """Finished runs by name."""
    return gloo_results.jobs


def _curve(job, key: str = "train/loss_nats") -> list[float]:
    return [line[key] for line in read_metrics(job.log_uri) if key in line]


def test_loop_writes_every_step_evaluation_and_checkpoint(runs):
    lines = read_metrics(runs["calm"].log_uri)
    assert [line["step"] for line in lines] == list(range(13))
    assert [line["step"] for line in lines if "validation/loss_nats" in line] == [0, 3, 6, 9, 12]
    assert [name[:11] for name in list_checkpoints(runs["calm"].log_uri)] == ["step-000012", "step-000008"]
    rates = [line["train/learning_rate"] for line in lines[1:]]
    assert rates == pytest.approx([Schedule(0.003, "cosine", 2, 12).rate_at(step) for step in range(12)])
    for line in lines[1:]:
        assert line["train/gradient_norm"] > 0 and line["train/memory_mib"] > 50
        assert 0 < line["train/model_flops_utilisation"] < 2


@pytest.mark.parametrize(("stage", "offload"), run_settings.STAGES)
def test_stages_and_offload_give_one_curve_while_gradients_are_clipped(runs, stage, offload):
    calm, other = runs["calm"], runs[f"{stage}-{offload}"]
    assert max(_curve(calm, "train/gradient_norm")) > 0.5
    assert _curve(other) == pytest.approx(_curve(calm), abs=1e-3)
    assert _curve(other, "train/gradient_norm") == pytest.approx(_curve(calm, "train/gradient_norm"), rel=1e-3)


def test_run_goes_on_from_the_last_whole_checkpoint_on_other_workers_and_stage(runs):
    calm, resumed = runs["calm"], runs["resumed"]
    lines = read_metrics(resumed.log_uri)
    assert lines[9]["run/resumed_from"].startswith("step-000008") and lines[9]["run/workers"] == 1
    assert [name[:11] for name in lines[9]["run/damaged_checkpoints"]] == ["step-000012", "step-000011"]
    assert _curve(resumed) == pytest.approx(_curve(calm), abs=1e-5)
    assert [name[:11] for name in list_checkpoints(resumed.log_uri)] == ["step-000012", "step-000008"]
    held_out = "validation/loss_nats"
    assert _curve(resumed, held_out) == pytest.approx(_curve(calm, held_out), abs=1e-5)


def test_run_starts_anew_and_deletes_the_checkpoints_when_all_are_damaged(runs):
    calm, anew = runs["calm"], runs["anew"]
    lines = read_metrics(anew.log_uri)
    damaged = lines[0]["run/damaged_checkpoints"]
    assert "run/resumed_from" not in lines[0] and len(damaged) == 3
    assert _curve(anew) == pytest.approx(_curve(calm), abs=1e-5)
    names = list_checkpoints(anew.log_uri)
    assert [name[:11] for name in names] == ["step-000012", "step-000008"] and not set(names) & set(damaged)
    assert find_checkpoint(anew.log_uri) == (names[0], [])


def test_best_adapter_is_kept_and_the_run_stops_when_the_held_out_loss_falls_no_more(runs):
    job = runs["stopped"]
    held_out = {line["step"]: line["validation/loss_nats"] for line in read_metrics(job.log_uri)}
    name, _ = find_checkpoint(job.log_uri)
    with fetch_checkpoint(job.log_uri, name) as folder:
        state = read_state(folder)
        best, last = (load_file(folder / part / "adapter_model.safetensors") for part in ("best", "adapter"))
    assert state.stopped and state.step == state.best_step + 2 == max(held_out) < run_settings.STEPS
    assert state.best_loss_nats == held_out[state.best_step] == min(held_out[step] for step in held_out if step)
    assert set(best) == set(last) and any((best[key] - last[key]).abs().max() > 0.01 for key in best)


def test_best_adapter_outlives_a_resumption_from_the_checkpoint_that_is_the_best(runs):
    name, _ = find_checkpoint(runs["gained"].log_uri)
    with fetch_checkpoint(runs["gained"].log_uri, name) as folder:
        state = read_state(folder)
        assert (state.step, state.best_step, state.best_folder) == (12, 8, "best")
        best = load_file(folder / "best" / "adapter_model.safetensors")
    assert all(torch.equal(best[key], value) for key, value in load_file(_first_adapter(runs["gained"])).items())


def _first_adapter(job) -> Path:
    return Path(job.log_uri) / "kept" / "adapter_model.safetensors"


def test_loss_that_is_not_finite_ends_the_run_with_its_step_and_examples(runs):
    job = runs["nan"]
    text = take_failure(job.log_uri)
    assert text is not None and text.startswith("Step 2: ") and "row" in text.split("examples are ")[1]
    assert len(text.split("examples are ")[1].split(", ")) == 5
    assert [name[:11] for name in list_checkpoints(job.log_uri)] == ["step-000001"]
    assert find_checkpoint(job.log_uri)[0] is not None and take_failure(job.log_uri) is None


def test_state_is_refused_when_a_file_is_missing_or_another(runs, tmp_path):
    folder = Path(runs["calm"].log_uri)
    shutil.copytree(folder / "checkpoints" / list_checkpoints(str(folder))[0], tmp_path / "one")
    assert read_state(tmp_path / "one").step == 12
    (tmp_path / "one" / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"no whole checkpoint: adapter/adapter_config\.json"):
        read_state(tmp_path / "one")
