"""Two replicas, of which one's engine is killed, in traffic and while a version loads: every request is answered."""

import asyncio
import os

import httpx
import psutil
import pytest

from raydistill.engine.config import EngineConfig
from raydistill.registry.aliases import move_alias, read_aliases
from raydistill.registry.versions import read_version
from tests.jobs.students import CHAT, HEADER, POLL_SECONDS, TOKENS, chat, wait_for
from tests.scaled_version import publish_scaled

pytestmark = pytest.mark.skipif("RAYDISTILL_SWAPS" not in os.environ, reason="minutes for each kill: `make soak`")
FACTORS = (-1.2, 0.6, 1.3)
CLIENTS = 4
PATIENCE_SECONDS = 240  # for a killed engine's replica to be replaced, beside two others on two cores


@pytest.fixture(scope="module")
def pair(world):
    """A student of two replicas beside the world's own: its address, and the processes that are not its engines."""
    from raydistill.serving import app

    others = engines()
    settings = {"dtype": "float32", "max_model_len": 384, "max_num_seqs": 16, "max_lora_rank": 8, "omp_threads": 1}
    engine = EngineConfig.model_validate({**settings, "num_replicas": 2})
    app.start(world.base_dir, world.settings.task.storage, engine, POLL_SECONDS, ("pair", "/pair"))
    try:
        yield f"{world.url}/pair", others
    finally:
        app.stop("pair")


def engines():
    return {item.pid for item in psutil.Process().children(recursive=True) if "EngineCore" in item.name()}


def test_every_request_is_answered_where_one_of_two_engines_dies_in_traffic_and_one_in_a_load(world, pair):
    uri = world.settings.models_uri
    before = read_aliases(uri).mapping["final"]
    versions = [read_version(uri, before), *(publish_scaled(world, factor) for factor in FACTORS)]
    try:
        asyncio.run(kill_under_load(world, *pair, versions))
    finally:
        move_alias(uri, "final", before)


async def kill_under_load(world, url, others, versions):
    exact = [f"tiny/{version.label}@{version.content_digest}" for version in versions]
    async with (
        httpx.AsyncClient(base_url=world.url, timeout=60) as beside,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as http,
    ):
        alone = {name: (await chat(beside, name.partition("@")[0], stream=False))[1] for name in exact}
        answers, over = [], False

        async def ask():
            body = {"model": "tiny", "messages": CHAT, "max_tokens": TOKENS, "temperature": 0}
            while not over:
                answers.append(await http.post("/v1/chat/completions", json=body))
                await asyncio.sleep(0.1)

        running = [asyncio.create_task(ask()) for _ in range(CLIENTS)]
        await asyncio.sleep(2)
        await kill_one(http, others)
        await loads_again(http, exact[0])
        for version, name in zip(versions[1:], exact[1:], strict=True):
            move_alias(world.settings.models_uri, "final", version.label)
            if await loads_somewhere(http, f"tiny/{version.label}"):
                await kill_one(http, others)
                await loads_again(http, name)
                break
            await wait_for(http, "aliases", "tiny/final", name)
        else:
            raise AssertionError("no load was seen")
        over = True
        await asyncio.gather(*running)
        told = (await http.get("/status")).json()
    assert told["refused"] == {}, "an engine that died has refused nothing"
    assert len(answers) > 50
    assert {answer.status_code for answer in answers} == {200}, {answer.text for answer in answers if answer.is_error}
    for answer in answers:
        text = answer.json()["choices"][0]["message"]["content"]
        assert text == alone[answer.headers[HEADER]] and answer.json()["model"] == answer.headers[HEADER]
    assert {answer.headers[HEADER] for answer in answers[-CLIENTS:]} == {name}


async def kill_one(http, others):
    """Kill one engine, and return when its replica is not among those that are told of any more."""
    replicas = {item["replica"] for item in (await http.get("/status")).json()["replicas"]}
    assert len(replicas) == 2
    psutil.Process(min(engines() - others)).kill()
    for _ in range(PATIENCE_SECONDS):
        await asyncio.sleep(1)
        now = {item["replica"] for item in (await http.get("/status")).json().get("replicas", [])}
        if now and replicas - now:
            return
    raise AssertionError("the killed engine's replica is still there")


async def loads_again(http, exact):
    """Return when there are two replicas, and both serve this version."""
    for _ in range(PATIENCE_SECONDS):
        status = (await http.get("/status")).json()
        if len(status.get("replicas", [])) == 2 and status.get("aliases", {}).get("tiny/final") == exact:
            return
        await asyncio.sleep(1)
    raise AssertionError(f"two replicas do not serve {exact}: {status}")


async def loads_somewhere(http, name):
    """Return whether a version is seen on its way into an engine, before all serve it."""
    for _ in range(200):
        status = (await http.get("/status")).json()
        if name in status.get("loading", {}):
            return True
        if status.get("aliases", {}).get("tiny/final", "").startswith(f"{name}@"):
            return False
        await asyncio.sleep(0.02)
    return False
