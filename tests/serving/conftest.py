"""A registry of small versions, without a model: what is checked against one is checked in tests/registry."""

from pathlib import Path

import pytest

from raydistill.registry.publish import publish
from raydistill.serving import gate
from raydistill.serving.adapters import AdapterTable
from tests.drafts import make_draft, write_bare_adapter
from tests.serving.toy_engine import ToyEngine


class Registry:
    """ROOT/models with as many models and versions as a test asks for."""

    def __init__(self, root):
        self.root = root
        self.uri = str(root / "models")
        self._count = 0

    def model(self, name="triage"):
        return f"{self.uri}/{name}"

    def publish(self, name="triage", count=1):
        """Publish versions with weights of their own; returns the labels."""
        labels = []
        for _ in range(count):
            self._count += 1
            folder = write_bare_adapter(self.root / f"adapter{self._count}", f"weights {self._count}".encode())
            labels.append(publish(self.model(name), make_draft(name=name), folder).label)
        return labels

    def damage(self, label, name="triage"):
        """Spoil a version's weights; returns what mends them."""
        path = Path(self.model(name), label, "adapter_model.safetensors")
        good = path.read_bytes()
        path.write_bytes(good[::-1])
        return lambda: path.write_bytes(good)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "check_version", lambda *_: None)
    return Registry(tmp_path)


@pytest.fixture
def engine():
    return ToyEngine()


@pytest.fixture
def table(registry, engine, tmp_path):
    return AdapterTable(registry.uri, engine.gate(tmp_path / "cache"), max_resident=2)
