"""No key gets into what is written, printed or handed to Ray."""

import ast
from pathlib import Path

import pytest

from raydistill.client.transport import check_base_url
from raydistill.core import storage
from raydistill.core.errors import ConfigError
from raydistill.training.config import TrainConfig
from raydistill.training.rundir import claim_run

ROOT = Path(__file__).parent.parent
SECRET = "sEcReT-of-these-tests"
NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAYDISTILL_API_KEY", "HF_TOKEN")


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, SECRET)


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_ray_is_handed_no_key(monkeypatch, address):
    import ray

    from jobs.runtime import ClusterConfig, connect

    given = {}
    monkeypatch.setenv("RAYDISTILL_RAY_LOGS", "1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    connect(ClusterConfig.model_validate({"address": address}))
    assert "env_vars" in given["runtime_env"]
    assert SECRET not in str(given) and not any(name in str(given) for name in NAMES)


def test_a_runs_config_holds_no_key(tmp_path):
    config = TrainConfig(data_file="d.jsonl", student_model="m")
    claim_run(str(tmp_path), config.model_dump(), config.model_dump())
    text = storage.read_bytes(str(tmp_path / "config.json")).decode()
    assert SECRET not in text and not any(name in text for name in NAMES)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ConfigError) as caught:
        check_base_url(f"http://me:{SECRET}@127.0.0.1:8000")
    assert SECRET not in str(caught.value)


def test_the_environment_is_only_ever_read_by_name():
    """Whoever copies or prints the whole environment copies or prints the keys in it."""
    whole = []
    for file in [*ROOT.glob("raydistill/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ"):
                continue
            use = parents[node]
            named = isinstance(use, ast.Subscript | ast.Compare) or (
                isinstance(use, ast.Attribute) and use.attr in ("get", "setdefault")
            )
            if not named:
                whole.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(use)}")
    assert whole == []
