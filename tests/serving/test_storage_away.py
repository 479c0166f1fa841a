"""An object store on a real socket that goes away in the middle of a load and comes back: what is loaded goes on."""

import asyncio
import os
from urllib.parse import urlsplit

import pytest

from raydistill.core import s3, storage
from raydistill.core.errors import StorageError
from raydistill.registry.aliases import move_alias
from raydistill.serving import shelf
from raydistill.serving.adapters import AdapterTable
from tests.chaos.gate import open_gate
from tests.moto_bucket import open_bucket
from tests.serving.test_merged import ToyWeights, make_table
from tests.serving.toy_engine import ToyEngine


@pytest.fixture
def gate(registry):
    """The way to the bucket in which the registry is: closed, no byte comes through."""
    with open_bucket("away") as bucket, pytest.MonkeyPatch.context() as patch, open_gate(_store_port()) as gate:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gate.port}")
        storage._s3.cache_clear()
        s3.session.cache_clear()
        registry.uri = f"{bucket}/models"
        yield gate


def _store_port():
    return urlsplit(os.environ["AWS_ENDPOINT_URL"]).port


@pytest.fixture(params=["adapters", "merged"])
def table(request, registry, tmp_path):
    if request.param == "adapters":
        return AdapterTable(registry.uri, ToyEngine().gate(tmp_path / "cache"), max_resident=2)
    return make_table(registry, ToyWeights(), tmp_path / "cache")[0]


def test_a_store_that_goes_away_in_the_middle_of_a_load_is_waited_for(gate, registry, table, tmp_path, monkeypatch):
    registry.publish(count=2)
    move_alias(registry.model(), "final", "v0001")
    asyncio.run(table.start(0.01, 60, 60))
    move_alias(registry.model(), "final", "v0002")
    find_content = shelf.find_content
    monkeypatch.setattr(shelf, "find_content", lambda *place: (find_content(*place), gate.close())[0])
    asyncio.run(table.refresh())
    assert "UnavailableError" in table.status()["unread"]["triage/v0002"]
    asyncio.run(table.refresh())
    told = table.status()
    assert told["storage_error"] and told["storage_error_since"].startswith("20") and told["refused"] == {}

    async def ask():
        async with asyncio.timeout(5), table.use("triage") as loaded:
            return loaded.version.label

    assert asyncio.run(ask()) == "v0001"
    new = AdapterTable(registry.uri, ToyEngine().gate(tmp_path / "new"), max_resident=2)
    with pytest.raises(StorageError, match="could not be read"):
        asyncio.run(new.start(0.01, 0.1, 60))
    monkeypatch.setattr(shelf, "find_content", find_content)
    gate.open()
    asyncio.run(table.refresh())
    assert asyncio.run(ask()) == "v0002"
    assert table.status()["storage_error"] is None and table.status()["unread"] == {}
