"""A student that merges, on real Serve and vLLM: the LoRA student's answers, swapped in place under requests."""

import asyncio

import httpx
import pytest

import raydistill
from raydistill.core.errors import NotFoundError
from raydistill.engine.config import EngineConfig
from raydistill.registry.aliases import move_alias, read_aliases
from raydistill.registry.resolve import resolve, rollback
from tests.jobs.students import CHAT, HEADER, POLL_SECONDS, chat, sample, spoil_probe, wait_for
from tests.scaled_version import publish_scaled

FACTORS = (-1.5, 0.5, 1.4)
SWAPS = 8
PAUSE_SECONDS = 0.05  # between a client's requests, or two cores do nothing else


@pytest.fixture(scope="module")
def merged_url(world):
    """A merging student beside the world's own, for the same alias."""
    from raydistill.serving import app

    settings = {"dtype": "float32", "max_model_len": 384, "max_num_seqs": 16, "max_lora_rank": 8, "omp_threads": 1}
    engine = EngineConfig.model_validate({**settings, "adapter_mode": "merged", "merged_alias": "tiny/final"})
    app.start(world.base_dir, world.settings.task.storage, engine, POLL_SECONDS, ("merged", "/merged"))
    try:
        first = {"model": "tiny", "messages": CHAT, "max_tokens": 4}
        answer = httpx.post(f"{world.url}/merged/v1/chat/completions", json=first, timeout=60)
        version = resolve(world.settings.models_uri, "final")
        exact = f"tiny/{version.label}@{version.content_digest}"
        assert (answer.status_code, answer.headers.get(HEADER)) == (200, exact), "it was up before its version was"
        yield f"{world.url}/merged"
    finally:
        app.stop("merged")


def test_merged_answers_are_the_adapters_and_swap_without_a_failed_or_mixed_request(world, merged_url):
    uri = world.settings.models_uri
    versions = [publish_scaled(world, factor) for factor in FACTORS]
    broken = spoil_probe(uri, publish_scaled(world, 0.9))
    before = read_aliases(uri).mapping["final"]
    try:
        asyncio.run(swap_under_load(world, merged_url, uri, versions, broken))
    finally:
        move_alias(uri, "final", before)


async def swap_under_load(world, merged_url, uri, versions, broken):
    exact = {version.label: f"tiny/{version.label}@{version.content_digest}" for version in versions}
    lora = raydistill.ServiceClient(world.url)
    client = raydistill.ServiceClient(merged_url).create_sampling_client(model_path="raydistill://tiny/final")
    async with (
        httpx.AsyncClient(base_url=world.url, timeout=60) as beside,
        httpx.AsyncClient(base_url=merged_url, timeout=60) as http,
    ):
        tokens, texts = {}, {}
        for label, name in exact.items():
            tokens |= dict([await sample(lora.create_sampling_client(model_path=f"raydistill://tiny/{label}"))])
            texts[name] = (await chat(beside, f"tiny/{label}", stream=False))[1]
        assert len(set(map(str, tokens.values()))) == len(set(texts.values())) == len(versions), "all answer alike"
        move_alias(uri, "final", versions[0].label)
        await wait_for(http, "aliases", "tiny/final", exact[versions[0].label])
        sampled, chatted, over = [], [], False

        async def keep_sampling():
            while not over:
                sampled.append(await sample(client, num_samples=3))
                await asyncio.sleep(PAUSE_SECONDS)

        async def keep_chatting(stream):
            while not over:
                chatted.append(await chat(http, "tiny", stream))
                await asyncio.sleep(PAUSE_SECONDS)

        running = [asyncio.create_task(task) for task in (keep_sampling(), keep_chatting(True), keep_chatting(False))]
        for swap in range(SWAPS):
            label = versions[(swap + 1) % len(versions)].label
            if swap == 3:
                at = read_aliases(uri).mapping["final"]
                move_alias(uri, "final", broken.label)
                await wait_for(http, "refused", f"tiny/{broken.label}", None)
                assert (await http.get("/status")).json()["aliases"]["tiny/final"] == exact[at]
                assert rollback(uri, "final").mapping["final"] == at
            move_alias(uri, "final", label)
            await wait_for(http, "aliases", "tiny/final", exact[label])
            assert (await chat(http, "tiny", stream=True))[0] == {exact[label]}
        over = True
        await asyncio.gather(*running)  # raises what failed a request
        status = (await http.get("/status")).json()
        refused = [
            (await http.post("/v1/chat/completions", json={"model": model, "messages": CHAT})).status_code
            for model in (world.base_dir, "tiny/candidate", f"tiny/{versions[0].label}")
        ]
    assert {name for name, _ in sampled} == {name for names, _ in chatted for name in names} == set(exact.values())
    for name, answers in sampled:
        assert answers == tokens[name], name
    for names, text in chatted:
        assert len(names) == 1 and text == texts[next(iter(names))], names
    assert "the probe failed" in status["refused"][f"tiny/{broken.label}"]
    assert status["replicas"][0]["adapter_mode"] == "merged" and not status["replicas"][0]["weights_change"]
    assert status["models"] == ["tiny/final", status["aliases"]["tiny/final"].partition("@")[0]]
    assert refused == [404, 404, 404]


def test_the_base_and_other_names_are_unknown_to_it(world, merged_url):
    with raydistill.ServiceClient(merged_url) as service:
        with pytest.raises(NotFoundError, match=r"only tiny/final, merged into its weights"):
            service.create_sampling_client(base_model=world.base_dir)
        with pytest.raises(NotFoundError, match=r"only tiny/final, merged into its weights"):
            service.create_sampling_client(model_path="raydistill://tiny/candidate")
