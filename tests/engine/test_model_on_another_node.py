"""A replica on a node without the driver's folder of the model finds its own: in storage, and never another model."""

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from raydistill.core import storage
from raydistill.core.errors import ConflictError, NotFoundError
from raydistill.core.models import model_revision, resolve_model
from raydistill.engine.args import make_llm_config
from raydistill.engine.config import EngineConfig
from tests.moto_bucket import open_bucket

server = pytest.importorskip("raydistill.engine.server")
CONFIG = EngineConfig(accelerator="cpu", max_model_len=64)


class Engine:
    """Stands in for vLLM: what it would be started on is looked at, it costs 15 s to start."""

    def __init__(self, llm_config) -> None:
        self.model = llm_config.get_engine_config().get_initialization_kwargs()["model"]
        self.running = False
        self._engine_client = SimpleNamespace(generate=None)  # what rows would be counted at

    async def start(self) -> None:
        self.running = True


class Replica(server.TokenServer):
    def __del__(self) -> None:
        """Ray's own is a coroutine, which nobody would await here."""


def build(model: str) -> bytes:
    """Return what travels to the replicas, made as `build` of an application makes it."""
    llm_config = make_llm_config(model, resolve_model(model), CONFIG, server.TokenServer, lora=False)
    server.TokenServer.get_deployment_options(llm_config)  # makes and keeps the engine's config on the driver
    return cloudpickle.dumps(llm_config)


def start_replica(packed: bytes) -> Engine:
    replica = Replica.sync_init(cloudpickle.loads(packed), engine_cls=Engine)
    asyncio.run(replica.start())
    assert replica.engine.running
    return replica.engine


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """A function that moves to a node with a cache of its own."""

    def enter(name: str) -> Path:
        monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / name))
        return tmp_path / name

    return enter


@pytest.fixture(scope="module")
def bucket():
    with open_bucket("models") as uri:
        yield uri


def test_replica_fetches_a_model_in_storage_when_the_drivers_folder_is_not_on_its_node(bucket, model_dir, nodes):
    uri = f"{bucket}/fetched"
    storage.upload_dir(Path(model_dir), uri)
    driver = nodes("driver")
    packed = build(uri)
    shutil.rmtree(driver)
    own = nodes("replica")
    engine = start_replica(packed)
    assert Path(engine.model).is_relative_to(own) and not driver.exists()
    assert model_revision(engine.model) == model_revision(model_dir)


def test_replica_takes_the_drivers_folder_when_it_is_there(model_dir, nodes):
    own = nodes("replica")
    assert start_replica(build(model_dir)).model == model_dir
    assert not own.exists()


def test_replica_refuses_a_model_that_has_changed_since_the_application_was_built(bucket, model_dir, nodes):
    uri = f"{bucket}/changed"
    storage.upload_dir(Path(model_dir), uri)
    driver = nodes("driver")
    packed = build(uri)
    shutil.rmtree(driver)
    storage.write_bytes(f"{uri}/special_tokens_map.json", b"{}")
    nodes("replica")
    with pytest.raises(ConflictError, match=f"{uri} was .* Start the application again"):
        start_replica(packed)


def test_replica_names_a_folder_that_only_the_driver_has(tmp_path, model_dir, nodes):
    shutil.copytree(model_dir, tmp_path / "only-here")
    packed = build(str(tmp_path / "only-here"))
    shutil.rmtree(tmp_path / "only-here")
    nodes("replica")
    with pytest.raises(NotFoundError, match="only-here is no folder here"):
        start_replica(packed)
