"""What ends a training before or under way, and on which dtype it runs."""

import importlib.util
import logging

import pytest

from raydistill.core.errors import ConfigError, ConflictError, DatasetError, TrainingError
from raydistill.core.lr import get_lr
from raydistill.training.batches import EncodedRow, plan_steps, rows_of_step
from raydistill.training.config import TrainConfig
from raydistill.training.fit import choose_dtype, fit, has_bfloat16_units, make_job
from raydistill.training.job import Engine, Job, Lora, Objective, Rhythm
from raydistill.training.rundir import claim_run
from raydistill.training.saved import list_checkpoints
from raydistill.training.schedule import Schedule
from tests.training.fit_driver import ROWS, TRAINED, make_config


def test_training_fails_with_step_and_examples_when_the_loss_is_not_finite(cluster, model_dir, tmp_path):
    config = make_config(model_dir, str(tmp_path / "run"), checkpoint_every=1, num_epochs=1)
    config = config.model_copy(update={"learning_rate": 1e30})  # more than a user may set
    rows = ", ".join(TRAINED[index].id for index in rows_of_step(plan_steps(32, 8, 1, None, 0), 1))
    with pytest.raises(
        TrainingError, match=f"Step 2: The (loss|norm).* became (nan|inf).*examples are {rows}.*are kept"
    ):
        fit(config, TRAINED, [], model_dir)
    assert [name[:11] for name in list_checkpoints(str(tmp_path / "run"))] == ["step-000001"]


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
        fit(make_config(model_dir, str(tmp_path / "run")), rows, [], model_dir)
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


def test_job_has_every_setting_of_the_config(model_dir):
    changes = {
        "kl_weight": 0.7,
        "kl_temperature": 2.5,
        "lora_rank": 6,
        "lora_alpha": 9,
        "lora_targets": ["q_proj", "v_proj"],
        "micro_batch_size": 3,
        "pack_tokens": 500,
        "learning_rate": 0.004,
        "schedule": "cosine",
        "warmup_steps": 5,
        "max_grad_norm": 0.25,
        "threads_per_worker": 7,
        "zero_stage": 3,
        "offload": "parameters",
        "gradient_checkpointing": True,
        "eval_every": 11,
        "patience": 4,
        "checkpoint_every": 13,
    }
    config = make_config("base/as-written", "unused", **changes)
    default = TrainConfig.model_validate({"data_file": "d", "student_model": "m"})
    assert all(getattr(config, key) != getattr(default, key) for key in changes)
    plan = plan_steps(32, 8, 5, None, 17)
    assert make_job(config, plan, model_dir, "bfloat16", "s3://b/run", [5, 6]) == Job(
        model_dir=model_dir,
        base_model="base/as-written",
        log_uri="s3://b/run",
        plan=plan,
        dtype="bfloat16",
        lora=Lora(rank=6, alpha=9, targets=("q_proj", "v_proj")),
        schedule=Schedule(0.004, "cosine", 5, 20),
        engine=Engine(
            zero_stage=3, offload="parameters", max_grad_norm=0.25, micro_batch_size=3, pack_tokens=500, threads=7
        ),
        rhythm=Rhythm(eval_every=11, patience=4, checkpoint_every=13),
        objective=Objective(kl_weight=0.7, kl_temperature=2.5),
        teacher_prefix=(5, 6),
        gradient_checkpointing=True,
    )


def test_job_has_rate_alpha_and_warm_up_of_its_own_where_the_config_leaves_them_open(model_dir):
    config = make_config(model_dir, "unused", learning_rate=None, lora_rank=6, warmup_steps=50)
    job = make_job(config, plan_steps(32, 8, 5, None, 0), model_dir, "float32", "unused")
    assert job.schedule.peak == get_lr(model_dir)
    assert job.lora == Lora(rank=6, alpha=6, targets=None)
    assert job.schedule == Schedule(get_lr(model_dir), "linear", 19, 20), "the last step is none of the warm-up"


@pytest.mark.parametrize("rank", [0, 513])
def test_rank_that_no_adapter_can_have_is_refused(model_dir, rank):
    with pytest.raises(ValueError, match=f"lora_rank.*(\n.*)*{'greater' if rank == 0 else 'less'} than or equal to"):
        make_config(model_dir, "unused", lora_rank=rank)


def test_fit_warns_of_few_steps_before_anything_starts(model_dir, tmp_path, caplog):
    claim_run(str(tmp_path), {"seed": 99}, {})
    with caplog.at_level(logging.WARNING), pytest.raises(ConflictError, match=r"a run with another .*seed"):
        fit(make_config(model_dir, str(tmp_path), num_epochs=2), TRAINED, [], model_dir)
    assert "8 steps are few" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_to": ["wandb", "mlflow"]}, "pip install wandb mlflow"),
        ({"lora_targets": ["q_proj", "v_prj"]}, r"no linear layer v_prj \(did you mean v_proj\?\); it has .*gate_proj"),
    ],
)
def test_settings_are_refused_before_anything_starts_when_they_cannot_work(
    model_dir, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=message):
        fit(make_config(model_dir, str(tmp_path / "run"), **changes), ROWS, [], model_dir)
    assert not (tmp_path / "run").exists()


def test_folder_of_something_else_is_refused(model_dir, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConflictError, match=r"holds notes\.txt and is no run's folder"):
        fit(make_config(model_dir, str(tmp_path)), ROWS, [], model_dir)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
