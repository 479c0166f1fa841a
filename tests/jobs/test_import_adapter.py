"""A foreign adapter becomes a version that is checked, probed and served like any; a wrong one leaves nothing."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from jobs import runtime
from jobs.import_adapter import ImportConfig, run
from raydistill.cli.app import app
from raydistill.core import storage
from raydistill.core.errors import ConfigError, NotFoundError, VerificationError
from raydistill.registry.check import check_version
from raydistill.registry.fetch import fetch_version
from raydistill.registry.probe import probe_passes
from raydistill.registry.versions import list_versions, read_version
from raydistill.scoring.logprobs import completion_logprobs
from raydistill.scoring.model import load_model


@pytest.fixture
def foreign(adapter_dir, tmp_path):
    """A private copy of an adapter that PEFT wrote."""
    return shutil.copytree(adapter_dir, tmp_path / "foreign")


def make_config(foreign, model_dir, tmp_path, **changes):
    fields = {
        "adapter_dir": str(foreign),
        "name": "guest",
        "base_model": model_dir,
        "storage": str(tmp_path / "registry"),
    }
    return ImportConfig.model_validate({**fields, **changes})


def change_config(foreign, **changes):
    path = foreign / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_imported_adapter_passes_every_check_and_its_probe_tells_it_from_the_base(foreign, model_dir, tmp_path):
    (foreign / "README.md").write_text("left behind")
    version = run(make_config(foreign, model_dir, tmp_path))
    uri = f"{tmp_path}/registry/models/guest"
    assert read_version(uri, "v0001") == version
    assert version.verifiable and len(version.probe) == 16
    assert (version.lora["rank"], version.lora["modules"]) == (4, 14)
    assert version.metrics == {"imported_from": str(foreign)}
    assert storage.list_names(f"{uri}/v0001") == ["adapter_config.json", "adapter_model.safetensors", "version.json"]
    folder = fetch_version(uri, version, tmp_path / "cache")
    check_version(version, folder, model_dir, max_rank=4)
    rows = [(point.prefix, [point.token]) for point in version.probe]
    model = load_model(model_dir, folder)
    for adapted in (True, False):
        served = [float(row[0]) for row in completion_logprobs(model, rows, adapted=adapted)]
        assert probe_passes(version.probe, served)[0] is adapted


def test_an_adapter_that_does_nothing_is_unverifiable(foreign, model_dir, tmp_path):
    tensors = load_file(foreign / "adapter_model.safetensors")
    save_file(
        {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, foreign / "adapter_model.safetensors"
    )
    assert not run(make_config(foreign, model_dir, tmp_path)).verifiable


def test_queries_of_the_adapters_own_task_make_the_probe(foreign, model_dir, tmp_path):
    queries = tmp_path / "q.jsonl"
    queries.write_text('{"text": "Where is my parcel?"}\n')
    version = run(make_config(foreign, model_dir, tmp_path, queries=str(queries)))
    assert len({tuple(point.prefix[:8]) for point in version.probe}) == 1, "all points begin as the one query does"


def test_a_pattern_of_targets_is_written_out(foreign, model_dir, tmp_path):
    change_config(foreign, target_modules=r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)")
    version = run(make_config(foreign, model_dir, tmp_path))
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert version.lora["targets"] == names
    published = json.loads(Path(tmp_path, "registry/models/guest/v0001/adapter_config.json").read_text())
    assert published["target_modules"] == names


def poison(foreign):
    tensors = load_file(foreign / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, foreign / "adapter_model.safetensors")


def cut(foreign):
    path = foreign / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def rename(foreign):
    tensors = load_file(foreign / "adapter_model.safetensors")
    tensors = {name.replace("layers.1", "layers.9"): tensor for name, tensor in tensors.items()}
    save_file(tensors, foreign / "adapter_model.safetensors")


def empty(foreign):
    for path in foreign.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (poison, VerificationError, "cannot be imported: .*holds a weight of nan"),
        (cut, VerificationError, "no whole safetensors file"),
        (rename, VerificationError, "is no linear layer"),
        (empty, NotFoundError, r"holds no adapter_model\.safetensors \(it holds nothing\)"),
        (lambda folder: (folder / "adapter_config.json").unlink(), NotFoundError, "adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), ConfigError, "no JSON object"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), ConfigError, "is not JSON"),
        (lambda folder: change_config(folder, use_dora=True), VerificationError, "only plain LoRA"),
        (lambda folder: change_config(folder, init_lora_weights="pissa"), VerificationError, "changed base model"),
        (lambda folder: change_config(folder, r=8), VerificationError, "has shape"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_adapter_is_refused_and_nothing_is_written(foreign, model_dir, tmp_path, damage, error, reason):
    damage(foreign)
    with pytest.raises(error, match=reason):
        run(make_config(foreign, model_dir, tmp_path))
    assert not (tmp_path / "registry").exists()


def test_a_rank_above_the_students_is_refused(foreign, model_dir, tmp_path):
    with pytest.raises(VerificationError, match="max_lora_rank=4"):
        run(make_config(foreign, model_dir, tmp_path, max_lora_rank=3))


def test_a_pickle_is_not_read_and_the_message_says_what_to_do(foreign, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "set_up_logging", lambda: None)
    trace = tmp_path / "pickle-was-loaded"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trace,)

    (foreign / "adapter_model.safetensors").unlink()
    (foreign / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    storage = ["--storage", str(tmp_path / "registry")]
    words = ["import", str(foreign), "--name", "guest", "--base-model", model_dir, *storage]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and result.stdout == ""
    assert "adapter_model.bin" in result.stderr and "safe_serialization=True" in result.stderr
    assert not trace.exists() and not (tmp_path / "registry").exists()


def test_the_command_tells_the_version_as_json(foreign, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "set_up_logging", lambda: None)  # other tests listen to these loggers
    root = str(tmp_path / "registry")
    words = ["import", str(foreign), "--name", "guest", "--base-model", model_dir, "--storage", root, "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["version"] == "v0001" and told["aliases"] == [] and told["record"]["verifiable"]
    assert [version.label for version in list_versions(f"{root}/models/guest")] == ["v0001"]
    bad = CliRunner().invoke(app, [*words[:-1], "--renderer", "jinja", "--max-lora-rank", "0"])
    assert bad.exit_code == 2
    assert "renderer (command line)" in bad.stderr and "max_lora_rank (command line)" in bad.stderr
