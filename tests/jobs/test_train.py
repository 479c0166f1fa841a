"""jobs.train over the real parts: from a .jsonl to a published version; bad input starts nothing."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import train
from raydistill.core.errors import ConfigError, ConflictError, DatasetError, NotFoundError
from raydistill.core.models import model_revision
from raydistill.registry.check import check_version
from raydistill.registry.fetch import fetch_version
from raydistill.registry.merged import read_merged
from raydistill.registry.versions import list_versions
from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest
from raydistill.training.config import TrainConfig
from tests.jsonl import write_jsonl
from tests.processes import run_job
from tests.tiny import make_tiny_model


def _write_data(path: Path, count: int = 40) -> Path:
    answers = ["billing", "returns", "shipping"]
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"My order {i} is late."},
                {"role": "assistant", "content": answers[i % 3]},
            ]
        }
        for i in range(count)
    ]
    return write_jsonl(path, *lines)


def _config(model_dir: str, folder: Path, **changes) -> TrainConfig:
    values = {
        "data_file": str(_write_data(folder / "desk.jsonl")),
        "student_model": model_dir,
        "output_dir": str(folder / "models" / "desk"),
        "learning_rate": 0.01,
        "lora_rank": 4,
        "num_epochs": 8,
    }
    return TrainConfig.model_validate({**values, **changes})


def test_version_is_published_once_when_trained_twice(cluster, model_dir, tmp_path):
    config = _config(model_dir, tmp_path)
    seen = []
    version = train.run(config, on_progress=lambda *progress: seen.append(progress[:2]))
    assert version.label == "v0001" and version.name == "desk" and version.base_model == model_dir
    assert version.base_revision == model_revision(model_dir) and version.verifiable and len(version.probe) == 16
    tokenizer = load_tokenizer(model_dir)
    assert version.tokenizer == tokenizer_digest(tokenizer)
    assert version.template_digest == get_renderer("chat", tokenizer).template_digest
    assert version.lora["rank"] == version.lora["alpha"] == 4 and version.lora["modules"] == 14
    assert version.metrics["rows"] == {"train": 32, "validation": 8, "too_long": 0, "cut": 0}
    assert version.metrics["steps"] == 32 and seen[-1] == (32, 32)
    assert version.metrics["validation_loss_nats"] < 0.5 * version.metrics["validation_loss_nats_before"]
    folder = fetch_version(config.output_dir, version, tmp_path / "fetched")
    check_version(version, folder, model_dir, max_rank=4)
    assert len(load_file(Path(folder) / "adapter_model.safetensors")) == 28
    run_dir = tmp_path / "runs" / "desk" / version.metrics["run_id"]
    assert (run_dir / "metrics.jsonl").exists() and (run_dir / "loss.png").exists()
    assert train.run(config.model_copy(update={"merge": True})) == version
    assert read_merged(config.output_dir, version) is not None
    assert (tmp_path / "models" / "desk" / "merged" / "v0001" / "model.safetensors").exists()
    assert list_versions(config.output_dir) == [version]


def test_rows_that_are_too_long_are_left_out_and_counted(model_dir, tmp_path):
    config = _config(model_dir, tmp_path, max_length=48)
    path = Path(config.data_file)
    long_line = {
        "messages": [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "billing"}],
    }
    path.write_text(path.read_text() + json.dumps(long_line) + "\n")
    rows = train.read_rows(config, train.check_model(config))
    assert (rows.too_long, rows.cut) == (1, 0) and len(rows.train) + len(rows.validation) == 40
    assert all(row.num_tokens <= 48 for row in rows.train)
    tiny_limit = config.model_copy(update={"max_length": 3})
    with pytest.raises(DatasetError, match="no row of at most 3 tokens"):
        train.read_rows(tiny_limit, train.check_model(tiny_limit))


def test_student_reads_as_much_as_its_config_says_where_that_is_nested(tmp_path):
    nested = make_tiny_model(tmp_path / "nested")
    config_file = tmp_path / "nested" / "config.json"
    values = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({"model_type": values["model_type"], "text_config": values}))
    assert train.check_model(_config(nested, tmp_path)).max_tokens == 512
    assert train.check_model(_config(nested, tmp_path, max_length=64)).max_tokens == 64


def _talk(turns: int, last: str = "Where is it?") -> dict:
    pairs = [
        {"role": role, "content": f"{word} {turn}"}
        for turn in range(turns)
        for role, word in (("user", "parcel"), ("assistant", "order"))
    ]
    last_pair = [{"role": "user", "content": last}, {"role": "assistant", "content": "billing"}]
    return {"messages": [{"role": "system", "content": "Be brief."}, *pairs, *last_pair]}


def test_history_is_cut_from_its_oldest_turn_and_a_long_last_turn_is_left_out(model_dir, tmp_path):
    data = write_jsonl(tmp_path / "talks.jsonl", *(_talk(turns) for turns in range(1, 13)), _talk(1, "parcel " * 90))
    config = _config(model_dir, tmp_path, data_file=str(data), max_length=128, too_long="cut_history", batch_size=1)
    student = train.check_model(config)
    whole = train.read_rows(
        config.model_copy(update={"max_length": None}), train.check_model(_config(model_dir, tmp_path))
    )
    rows = train.read_rows(config, student)
    assert rows.too_long == 1 and rows.cut >= 3 and len(rows.train) + len(rows.validation) == 12
    by_id = {row.id: row for row in [*whole.train, *whole.validation]}
    cut = [row for row in [*rows.train, *rows.validation] if row.prompt_tokens != by_id[row.id].prompt_tokens]
    assert len(cut) == rows.cut and all(row.response_tokens == by_id[row.id].response_tokens for row in cut)
    start = student.tokenizer.encode("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nparcel ")
    for row in cut:
        text = student.tokenizer.decode(row.prompt_tokens)
        assert row.prompt_tokens[: len(start)] == start and "Where is it?" in text and row.num_tokens <= 128
        assert "parcel 0" not in text
    with pytest.raises(DatasetError, match=r"of 13 examples have more than 128 tokens.*too_long=drop"):
        train.read_rows(config.model_copy(update={"too_long": "refuse"}), student)


def test_some_rows_show_the_plain_query_when_raw_fraction_is_set(model_dir, tmp_path):
    config = _config(model_dir, tmp_path, raw_fraction=0.3)
    student = train.check_model(config)
    rows = train.read_rows(config, student)
    start = student.tokenizer.convert_tokens_to_ids("<|im_start|>")
    raw = [row for row in rows.train + rows.validation if start not in row.prompt_tokens]
    assert 4 <= len(raw) <= 20
    assert student.tokenizer.decode(raw[0].prompt_tokens).startswith("My order ")
    assert {row.response_tokens[-1] for row in rows.train} == {student.tokenizer.eos_token_id}
    no_raw = train.read_rows(config.model_copy(update={"raw_fraction": 0.0}), student)
    assert all(start in row.prompt_tokens for row in no_raw.train)


def test_default_places_follow_from_the_data_file_and_models_folder():
    config = TrainConfig.model_validate({"data_file": "data/analyst.jsonl", "student_model": "m"})
    assert train.find_output(config) == str(Path.cwd() / "models" / "analyst")
    assert train._runs_uri("s3://b/root/models/desk") == "s3://b/root/runs/desk"
    assert train._runs_uri("s3://b/adapters/desk") == "s3://b/adapters/runs/desk"
    with pytest.raises(ConfigError, match="no usable name"):
        train.find_output(config.model_copy(update={"output_dir": "models/-x y"}))


def test_unknown_model_or_data_is_refused_before_anything_starts(model_dir, tmp_path):
    with pytest.raises(NotFoundError, match="no-such"):
        train.run(_config(model_dir, tmp_path, student_model=str(tmp_path / "no-such")))
    with pytest.raises(NotFoundError, match=r"missing\.jsonl"):
        train.run(_config(model_dir, tmp_path, data_file=str(tmp_path / "missing.jsonl")))
    few = _config(model_dir, tmp_path, data_file=str(_write_data(tmp_path / "few.jsonl", 6)))
    with pytest.raises(DatasetError, match="fewer than one batch of 8"):
        train.run(few)
    with pytest.raises(ConfigError, match="no linear layer q_prj"):
        train.run(_config(model_dir, tmp_path, lora_targets=["q_prj"]))
    assert not (tmp_path / "models").exists() and not (tmp_path / "runs").exists()


def test_what_is_wrong_with_model_data_and_trackers_is_told_at_once(model_dir, tmp_path):
    wrong = {"student_model": str(tmp_path / "no-such"), "data_file": str(tmp_path / "missing.jsonl")}
    with pytest.raises(ConfigError) as caught:
        train.run(_config(model_dir, tmp_path, **wrong, log_to=["wandb"]))
    for said in ("no-such", "missing.jsonl", "log_to: wandb"):
        assert said in str(caught.value)


def test_base_without_a_template_is_refused_unless_the_renderer_is_raw(tmp_path):
    bare = make_tiny_model(tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r'no chat template.*renderer = "raw"'):
        train.run(_config(bare, tmp_path))
    assert train.check_model(_config(bare, tmp_path, renderer="raw")).model_dir == bare
    assert not (tmp_path / "models").exists()


def test_output_folder_of_something_else_is_refused(model_dir, tmp_path):
    (tmp_path / "models" / "desk" / "v0001").mkdir(parents=True)
    config = _config(model_dir, tmp_path)
    train.check_places(config)
    (tmp_path / "models" / "desk" / "metrics.jsonl").write_text("")
    with pytest.raises(ConflictError, match=r"holds metrics\.jsonl and is no model's registry folder"):
        train.run(config)


def test_command_ends_with_status_2_and_names_every_fault_when_the_input_is_bad(tmp_path):
    arguments = ["data_file=x.jsonl", "student_model=y", "lora_rnak=8", "zero_stage=4", "num_epochs=0", "dtype=half"]
    done = run_job("train", *arguments)
    assert done.returncode == 2
    for part in ("lora_rnak", "did you mean lora_rank?", "zero_stage", "num_epochs", "dtype", "4 faults"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
