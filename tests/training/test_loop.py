"""The training loop: best adapter kept, damaged checkpoints passed over, every stage the same training."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raydistill.core.errors import TrainingError
from raydistill.scoring.arms import open_arm
from raydistill.scoring.logprobs import kl_per_token
from raydistill.training import steps
from raydistill.training.batches import EncodedRow, rows_of_step
from raydistill.training.loop import pick_checked
from raydistill.training.model import load_student
from raydistill.training.rundir import read_metrics, take_failure
from raydistill.training.saved import fetch_checkpoint, find_checkpoint, list_checkpoints, read_state
from raydistill.training.schedule import Schedule
from raydistill.training.steps import Means, Setting
from raydistill.training.usage import count_parameters
from tests.training import runs as run_settings
from tests.training.workers import ALPHA, PREFIX, RANK, SEED, make_rows


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


def test_speed_and_utilisation_are_reckoned_from_the_steps_tokens_and_seconds(runs, model_dir):
    job, rows = runs["calm"], make_rows()[run_settings.HELD_OUT :]
    parameters = count_parameters(load_student(model_dir, RANK, ALPHA, SEED, "float32"))
    for line in read_metrics(job.log_uri)[1:]:
        step = [rows[index] for index in rows_of_step(job.plan, line["step"] - 1)]
        completion_tokens, seconds = sum(len(row.response_tokens) for row in step), line["train/step_seconds"]
        assert line["train/completion_tokens"] == completion_tokens
        assert line["train/completion_tokens_per_second"] == pytest.approx(completion_tokens / seconds)
        flops = 4 * parameters * sum(row.num_tokens for row in step)
        both = 2 * run_settings.PEAK_FLOPS
        assert line["train/model_flops_utilisation"] == pytest.approx(flops / seconds / both)


@pytest.mark.parametrize(("stage", "offload"), run_settings.STAGES)
def test_stages_and_offload_give_one_curve_while_gradients_are_clipped(runs, stage, offload):
    calm, other = runs["calm"], runs[f"{stage}-{offload}"]
    assert max(_curve(calm, "train/gradient_norm")) > 0.5
    assert _curve(other) == pytest.approx(_curve(calm), abs=1e-3)
    assert _curve(other, "train/gradient_norm") == pytest.approx(_curve(calm, "train/gradient_norm"), rel=1e-3)


@pytest.mark.parametrize("stage", run_settings.BFLOAT16_STAGES)
def test_stages_give_one_curve_in_bfloat16_and_the_adapter_is_in_float32(runs, stage):
    """Measured: stages are 5e-3 from each other, and 1.6e-2 from float32."""
    job, calm = runs[f"bfloat16-{stage}"], runs["calm"]
    assert _curve(job) == pytest.approx(_curve(runs["bfloat16-2"]), abs=2e-2)
    assert 0 < max(abs(one - other) for one, other in zip(_curve(job), _curve(calm), strict=True)) < 0.05
    name, _ = find_checkpoint(job.log_uri)
    with fetch_checkpoint(job.log_uri, name) as folder:
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    assert {value.dtype for value in (*weights.values(), *moments.values())} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())


def test_run_goes_on_under_offload_from_a_checkpoint_that_was_made_without(runs):
    calm, offloaded = runs["calm"], runs["offloaded"]
    assert read_metrics(offloaded.log_uri)[9]["run/resumed_from"].startswith("step-000008")
    assert _curve(offloaded) == pytest.approx(_curve(calm), abs=1e-5)


def test_run_that_clips_no_gradients_has_another_curve(runs):
    calm, unclipped, other = runs["calm"], runs["unclipped-0"], runs["unclipped-2"]
    assert _curve(unclipped) == pytest.approx(_curve(other), abs=1e-3)
    apart = [abs(one - two) for one, two in zip(_curve(unclipped), _curve(calm), strict=True)]
    assert apart[0] < 1e-6 and max(apart) > 1e-2


def test_kl_of_a_runs_first_evaluation_and_step_is_what_scoring_finds_between_the_base_with_p_and_without(
    runs, model_dir
):
    job, base = runs["taught"], load_student(model_dir, RANK, ALPHA, SEED, "float32")
    rows = [run_settings.with_teacher(row) for row in make_rows()]
    held_out, trained = rows[: run_settings.HELD_OUT], rows[run_settings.HELD_OUT :]
    first = [trained[index] for index in rows_of_step(job.plan, 0)]
    for stage, chosen in (("validation", held_out), ("train", first)):
        with_p = open_arm(base, [[*PREFIX, *(row.teacher_tokens or [])] for row in chosen], adapted=False)
        bare = open_arm(base, [row.prompt_tokens for row in chosen], adapted=False)
        found = kl_per_token(with_p, {"bare": bare}, [row.response_tokens for row in chosen])["bare"]
        expected = torch.cat(found).mean().item()
        assert _curve(job, f"{stage}/kl_nats")[0] == pytest.approx(expected, rel=1e-4) and expected > 1
        assert _curve(job, f"{stage}/kl_nats") == _curve(job, f"{stage}/loss_nats"), "it is what is minimised"
    assert len(_curve(job, "train/kl_nats")) == run_settings.STEPS


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


def test_metrics_of_all_steps_are_there_when_the_loss_is_not_finite_between_checkpoints(runs):
    log_uri = runs["nan-unsaved"].log_uri
    assert (take_failure(log_uri) or "").startswith("Step 2: The loss became")
    assert [line["step"] for line in read_metrics(log_uri)] == [0, 1] and list_checkpoints(log_uri) == []


def test_held_out_loss_that_is_not_finite_is_told_with_its_examples_and_the_steps_metrics(runs):
    log_uri = runs["nan-held-out"].log_uri
    text = take_failure(log_uri)
    assert text is not None and text.startswith("Step 1: The held-out loss became nan: set a lower learning_rate")
    ids = text.removesuffix(".").partition("Its examples are ")[2].split(", ")
    assert set(ids) <= {f"row{index}" for index in range(run_settings.HELD_OUT)}
    assert read_metrics(log_uri)[-1]["step"] == 1 and read_metrics(log_uri)[-1]["train/loss_nats"] > 0


@pytest.mark.parametrize(("most", "found"), [(20, ["row2", "row5", "row6"]), (2, ["row2", "row5"])])
def test_only_rows_whose_own_loss_is_not_finite_are_named(monkeypatch, most, found):
    asked = []

    def validate(_engine, rows, *_):
        asked.append(len(rows))
        loss = float("nan") if {row.id for row in rows} & {"row2", "row5", "row6"} else 1.0
        return Means(loss, None, loss, 1)

    monkeypatch.setattr(steps, "validate", validate)
    setting = Setting(0, 1, torch.device("cpu"), "float32")
    rows = steps.find_not_finite(None, make_rows(12), 4, setting, most)
    assert [row.id for row in rows] == found and len(asked) <= 3 + 8


@pytest.mark.parametrize(
    ("micro_batch_size", "pack_tokens", "lengths", "count"),
    [
        (None, 2048, [10] * 9, 3),
        (5, 2048, [10] * 9, 5),
        (64, 2048, [700] * 9, 2),
        (64, 8192, [700] * 9, 9),
        (64, 2048, [9000] * 9, 1),
        (1, 2048, [10] * 9, 1),
    ],
)
def test_rows_that_packing_is_checked_with_are_no_more_than_a_pack_holds(micro_batch_size, pack_tokens, lengths, count):
    rows = [EncodedRow(f"r{index}", [1] * length, [2]) for index, length in enumerate(lengths)]
    setting = Setting(0, 1, torch.device("cpu"), "float32", micro_batch_size, pack_tokens)
    assert pick_checked(rows, setting) == rows[:count]


def test_state_is_refused_when_a_file_is_missing_or_another(runs, tmp_path):
    folder = Path(runs["calm"].log_uri)
    shutil.copytree(folder / "checkpoints" / list_checkpoints(str(folder))[0], tmp_path / "one")
    assert read_state(tmp_path / "one").step == 12
    (tmp_path / "one" / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"no whole checkpoint: adapter/adapter_config\.json"):
        read_state(tmp_path / "one")
