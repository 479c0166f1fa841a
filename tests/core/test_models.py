"""From a model's name to a folder, a revision and a learning rate."""

import json
import logging
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import raydistill
from raydistill.core import models, s3, storage
from raydistill.core.errors import ConfigError, NotFoundError, StorageError
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def test_folder_is_absolute_when_resolved(tiny, monkeypatch):
    monkeypatch.chdir(Path(tiny).parent)
    assert models.resolve_model("tiny") == str(Path(tiny).absolute())
    assert models.read_model_config(models.resolve_model("./tiny"))["hidden_size"] == 128


def test_demo_model_is_found_when_setup_has_made_it(tiny, cache):
    name = "demo://smollm2-135m-instruct"
    with pytest.raises(NotFoundError, match="make setup"):
        models.resolve_model(name)
    shutil.copytree(tiny, cache / "models" / "smollm2-135m-instruct")
    assert models.resolve_model(name) == str(cache / "models" / "smollm2-135m-instruct")
    with pytest.raises(NotFoundError, match="smollm2-135m-instruct"):
        models.resolve_model("demo://other")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/folder", "no hub id"),
        ("SomeOwner/SomeModel", "not in the hub's cache"),
        ("gs://bucket/model", "not known"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", r"Did you mean demo://smollm2-135m-instruct\?"),
    ],
)
def test_error_says_where_it_looked_when_a_model_is_absent(name, words):
    with pytest.raises(NotFoundError, match=words):
        models.resolve_model(name)


def test_nearest_folder_is_named_when_a_folder_is_misspelt(tiny):
    with pytest.raises(NotFoundError, match=r"Did you mean .*tiny\?"):
        models.resolve_model(tiny + "y")
    with pytest.raises(NotFoundError, match=r"without config\.json"):
        models.resolve_model(str(Path(tiny).parent))


def test_revision_is_the_same_for_a_copy_and_another_when_anything_counts(tiny, tmp_path):
    original = models.model_revision(tiny)
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert models.model_revision(str(copy)) == original
    (copy / "README.md").write_text("does not count")
    assert models.model_revision(str(copy)) == original
    changed = {original}
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        path = copy / name
        before = path.read_text()
        path.write_text(before + " ")
        changed.add(models.model_revision(str(copy)))
        path.write_text(before)
    changed.add(models.model_revision(make_tiny_model(tmp_path / "seed1", seed=1)))  # same header, other weights
    changed.add(models.model_revision(make_tiny_model(tmp_path / "bf16", dtype="bfloat16")))
    assert len(changed) == 6


def test_revision_is_refused_when_files_are_missing_or_cut(tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    for damaged in (b"", data[:5], data[:40], b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(ConfigError, match="Download the model again"):
            models.model_revision(str(copy))
    weights.unlink()
    with pytest.raises(NotFoundError, match="no safetensors"):
        models.model_revision(str(copy))
    (copy / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="no JSON object"):
        models.read_model_config(str(copy))


def _model_folder(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_learning_rate_follows_the_familys_fit_when_known(tmp_path, caplog):
    llama = _model_folder(tmp_path / "llama", model_type="llama", hidden_size=576)
    qwen = _model_folder(tmp_path / "qwen", model_type="qwen3_moe", hidden_size=4096)
    nested = _model_folder(tmp_path / "nested", model_type="qwen3_5", text_config={"hidden_size": 2000})
    with caplog.at_level(logging.WARNING):
        assert raydistill.get_lr(llama) == pytest.approx(1.3217e-3, rel=1e-3)
        assert raydistill.get_lr(qwen) == pytest.approx(5e-4 * (2000 / 4096) ** 0.0775)
        assert raydistill.get_lr(nested) == pytest.approx(5e-4)
    assert not caplog.records


def test_learning_rate_says_so_when_the_family_is_unknown(tmp_path, caplog):
    other = _model_folder(tmp_path / "other", model_type="gemma3", hidden_size=576)
    with caplog.at_level(logging.WARNING):
        assert raydistill.get_lr(other) == pytest.approx(1.3217e-3, rel=1e-3)
    assert "gemma3" in caplog.text and "Llama fit" in caplog.text
    with pytest.raises(ConfigError, match="hidden_size"):
        raydistill.get_lr(_model_folder(tmp_path / "none", model_type="llama"))


@pytest.fixture
def bucket(monkeypatch):
    """A bucket in a real object store: moto's server in a process of its own."""
    moto = Path(sys.executable).with_name("moto_server")
    command_name = str(moto) if moto.exists() else shutil.which("moto_server")
    if command_name is None:
        pytest.skip("moto_server is not installed (package moto[server])")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [command_name, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    storage._s3.cache_clear()
    s3.session.cache_clear()
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        storage._s3().create_bucket(Bucket="models")
        yield "s3://models"
    finally:
        storage._s3.cache_clear()
        s3.session.cache_clear()
        server.terminate()
        server.wait(timeout=10)


def test_model_in_object_storage_is_copied_once_and_anew_when_it_changes(bucket, tiny, cache, monkeypatch):
    uri = f"{bucket}/base/tiny"
    storage.upload_dir(Path(tiny), uri)
    storage.write_bytes(f"{uri}/pytorch_model.bin", b"pickled code")
    folder = models.resolve_model(uri)
    assert models.model_revision(folder) == models.model_revision(tiny)
    assert not (Path(folder) / "pytorch_model.bin").exists()
    monkeypatch.setattr(models, "_download", None)  # a second copy would call it
    assert models.resolve_model(uri + "/") == folder
    monkeypatch.undo()
    assert [entry.name for entry in Path(folder).parent.iterdir()] == [Path(folder).name]


def test_model_in_object_storage_is_fetched_anew_when_changed_and_small_without_weights(bucket, tiny):
    uri = f"{bucket}/base/tiny"
    storage.upload_dir(Path(tiny), uri)
    first = models.resolve_model(uri)
    small = models.resolve_model(uri, weights=False)
    assert small != first and not list(Path(small).glob("*.safetensors"))
    assert raydistill.get_lr(uri) == raydistill.get_lr(tiny)
    config = json.loads(storage.read_bytes(f"{uri}/config.json"))
    storage.write_bytes(f"{uri}/config.json", json.dumps({**config, "rms_norm_eps": 1e-5}).encode())
    second = models.resolve_model(uri)
    assert second != first
    assert models.read_model_config(second)["rms_norm_eps"] == 1e-5
    assert models.read_model_config(first)["rms_norm_eps"] == config["rms_norm_eps"]


def test_object_storage_errors_name_the_place_when_nothing_is_there(bucket):
    with pytest.raises(NotFoundError, match="nothing is there"):
        models.resolve_model(f"{bucket}/absent")
    with pytest.raises(StorageError, match="bucket does not exist"):
        models.resolve_model("s3://no-such-bucket/x")


def test_copy_is_given_up_when_the_model_changes_underneath(bucket, tiny, cache, monkeypatch):
    uri = f"{bucket}/base/tiny"
    storage.upload_dir(Path(tiny), uri)
    download = models._download

    def change_then_download(source, target):
        storage.write_bytes(f"{uri}/config.json", target.name.encode())
        download(source, target)

    monkeypatch.setattr(models, "_download", change_then_download)
    with pytest.raises(StorageError, match="was changed while it was copied"):
        models.resolve_model(uri)
    assert list((cache / "models").iterdir()) == []
