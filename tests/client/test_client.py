"""The client against a real server of the protocol, its faults included."""

import asyncio
import gc
import socket
from concurrent.futures import CancelledError, as_completed

import pytest
from fastapi.responses import JSONResponse, Response

import raydistill
from raydistill.client import sampling, transport
from raydistill.core.errors import ConfigError, NotFoundError, ServiceError
from raydistill.types import ModelInput, SampledSequence, SamplingParams
from tests.client.protocol_server import STOP, VERSION, State, serve
from tests.tiny import make_tiny_tokenizer

PROMPT = ModelInput.from_ints([5, 6, 7])
ASAMPLE, RETRIEVE = "/api/v1/asample", "/api/v1/retrieve_future"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("RAYDISTILL_BASE_URL", "RAYDISTILL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for module in (transport, sampling):
        monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.01, 0.02, 0.03))


@pytest.fixture
def state(tmp_path):
    (tmp_path / "base").mkdir()
    folder = make_tiny_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{}")
    return State(base_model=folder)


@pytest.fixture
def url(state):
    with serve(state) as base_url:
        yield base_url


@pytest.fixture
def service(url):
    with raydistill.ServiceClient(base_url=url) as client:
        yield client


@pytest.fixture
def sampler(service):
    return service.create_sampling_client(model_path="raydistill://analyst/final")


def test_sample_returns_tokens_logprobs_and_the_exact_version(state, sampler):
    params = SamplingParams(max_tokens=2, temperature=0.3, seed=4, stop=[])
    response = sampler.sample(PROMPT, num_samples=3, sampling_params=params).result(timeout=10)
    assert response.sequences == [SampledSequence([7, 6], [-0.5, -0.5], "length")] * 3
    assert response.model == VERSION
    (sent,) = state.bodies("asample")
    assert sent["prompt"] == {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]}
    assert sent["sampling_params"] == {
        "max_tokens": 2,
        "seed": 4,
        "temperature": 0.3,
        "top_k": -1,
        "top_p": 1.0,
        "stop": [],
    }
    assert state.samplers == {sent["sampling_session_id"]: "analyst/final"}
    assert (sent["seq_id"], sent["num_samples"]) == (0, 3)


def test_defaults_end_at_the_stop_token_when_no_parameters_are_given(state, sampler):
    response = sampler.sample(PROMPT).result(timeout=10)
    assert response.sequences == [SampledSequence([7, 6, 5, STOP], [-0.5] * 4, "stop")]
    assert state.bodies("asample")[0]["sampling_params"] == {"temperature": 1.0, "top_k": -1, "top_p": 1.0}


def test_async_sample_can_be_awaited_again_and_while_others_run(state, sampler):
    state.delay_seconds = 0.2

    async def use():
        pending = [await sampler.sample_async(ModelInput.from_ints([i])) for i in range(4)]
        first = await pending[0]
        assert await pending[0] is first
        state.delay_seconds = 1.0
        pending.append(await sampler.sample_async(ModelInput.from_ints([4])))
        given_up = asyncio.ensure_future(asyncio.wait_for(pending[4], timeout=0.0001))
        answers = await asyncio.gather(*pending)
        assert isinstance((await asyncio.gather(given_up, return_exceptions=True))[0], TimeoutError)
        return answers

    answers = asyncio.run(use())
    assert [answer.sequences[0].tokens for answer in answers] == [[i, STOP] for i in range(5)]


def test_many_samples_stay_below_the_servers_limit_when_sent_at_once(state, service):
    state.flags = {"sample_max_concurrent_requests": 4}
    state.delay_seconds = 0.05
    sampler = service.create_sampling_client(model_path="analyst")
    futures = [sampler.sample(ModelInput.from_ints([i])) for i in range(20)]
    assert sorted(done.result().sequences[0].tokens[0] for done in as_completed(futures, timeout=30)) == list(range(20))
    assert state.most_in_flight <= 4
    assert sorted(body["seq_id"] for body in state.bodies("asample")) == list(range(20))


def test_polls_are_not_hot_when_the_server_says_try_again_at_once(state, sampler):
    state.delay_seconds = 1.0
    sampler.sample(PROMPT).result(timeout=10)
    assert 2 <= len(state.bodies("retrieve_future")) <= 12


def test_sample_is_submitted_anew_when_the_server_has_lost_it(state, sampler):
    state.faults[RETRIEVE] = [JSONResponse({"detail": "lost"}, 410)]
    assert sampler.sample(PROMPT).result(timeout=10).sequences[0].tokens == [7, 6, 5, STOP]
    assert [body["seq_id"] for body in state.bodies("asample")] == [0, 1]


def test_sample_gives_up_when_it_is_lost_again_and_again(state, sampler):
    state.faults[RETRIEVE] = [JSONResponse({"detail": "lost"}, 410) for _ in range(50)]
    with pytest.raises(ServiceError, match="lost this request 4 times"):
        sampler.sample(PROMPT).result(timeout=10)
    assert len(state.bodies("asample")) == 4


@pytest.mark.parametrize("path", [ASAMPLE, RETRIEVE])
def test_server_errors_and_overload_are_outlasted_without_a_second_generation(state, sampler, path):
    state.faults[path] = [
        Response(status_code=503),
        JSONResponse({"detail": "busy"}, 429, headers={"retry-after": "0.1"}),
    ]
    assert sampler.sample(PROMPT).result(timeout=10).model == VERSION
    assert {body["seq_id"] for body in state.bodies("asample")} == {0}
    assert len(state.samples) == 1


def test_retries_end_when_the_server_keeps_failing_or_says_so(state, sampler):
    state.faults[ASAMPLE] = [JSONResponse({"detail": "broken"}, 500) for _ in range(50)]
    with pytest.raises(ServiceError, match="answered 500: broken"):
        sampler.sample(PROMPT).result(timeout=10)
    assert len(state.bodies("asample")) == 4
    state.faults[ASAMPLE] = [JSONResponse({"detail": "never"}, 503, headers={"x-should-retry": "false"})]
    with pytest.raises(ServiceError, match="answered 503: never"):
        sampler.sample(PROMPT).result(timeout=10)


def test_failed_sample_raises_the_servers_words_by_category(state, sampler):
    state.faults[RETRIEVE] = [
        JSONResponse({"error": "the engine died", "category": "server"}),
        JSONResponse({"error": "prompt too long", "category": "user"}),
        JSONResponse({"status": "complete_metadata"}),
        Response(b"<html>", media_type="text/html"),
        Response(b"\xff\xff", media_type="application/x-protobuf"),
    ]
    for kind, words in [
        (ServiceError, "the engine died"),
        (ConfigError, "prompt too long"),
        (ServiceError, "neither a result nor an error"),
        (ServiceError, "no JSON object"),
        (ServiceError, "no SampleResponse"),
    ]:
        with pytest.raises(kind, match=words):
            sampler.sample(PROMPT).result(timeout=10)


def test_unknown_model_names_the_known_ones(service):
    with pytest.raises(NotFoundError, match=r"analyst/nope is not served; known are analyst/final"):
        service.create_sampling_client(model_path="analyst/nope")


def test_wrong_calls_are_refused_before_anything_is_sent(state, service, sampler):
    seen = len(state.requests)
    for arguments in ({}, {"model_path": "a", "base_model": "b"}, {"model_path": "a/b/c/d"}, {"model_path": "../x"}):
        with pytest.raises(ConfigError):
            service.create_sampling_client(**arguments)
    with pytest.raises(ConfigError, match="0 prompt tokens"):
        sampler.sample(ModelInput.from_ints([]))
    with pytest.raises(ConfigError, match="0 samples"):
        sampler.sample(PROMPT, num_samples=0)
    for address in ("127.0.0.1:8000", "ftp://x", "http://"):
        with pytest.raises(ConfigError, match="no address"):
            raydistill.ServiceClient(base_url=address)
    assert len(state.requests) == seen


def test_a_full_service_is_waited_for_longer_than_a_broken_one(state, sampler):
    busy = {"error": {"code": "overloaded", "field": None, "message": "busy"}}
    state.faults[ASAMPLE] = [JSONResponse(busy, 429, headers={"retry-after": "0.1"}) for _ in range(12)]
    assert sampler.sample(PROMPT).result(timeout=20).model == VERSION
    assert state.faults[ASAMPLE] == []


def test_server_side_refusal_is_a_config_error(state, sampler):
    state.faults[ASAMPLE] = [JSONResponse({"detail": "token 999999 is outside the vocabulary"}, 400)]
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        sampler.sample(PROMPT).result(timeout=10)


def test_key_is_sent_from_argument_or_environment_and_asked_for_when_missing(state, url, monkeypatch):
    state.api_key = "tml-secret"
    monkeypatch.setenv("RAYDISTILL_BASE_URL", url + "/")
    with raydistill.ServiceClient() as client, pytest.raises(ServiceError, match="RAYDISTILL_API_KEY") as caught:
        client.create_sampling_client(model_path="analyst")
    assert "tml-secret" not in str(caught.value)
    with raydistill.ServiceClient(api_key="tml-secret") as client:
        assert client.create_sampling_client(model_path="analyst").sample(PROMPT).result(10).model == VERSION
    monkeypatch.setenv("RAYDISTILL_API_KEY", "tml-secret")
    with raydistill.ServiceClient() as client:
        assert client.create_sampling_client(model_path="analyst").sample(PROMPT).result(10).model == VERSION


def test_proxy_is_left_alone_when_the_service_is_on_this_machine(url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with raydistill.ServiceClient(base_url=url) as client:
        assert client.create_sampling_client(model_path="analyst").sample(PROMPT).result(10).model == VERSION


def test_absent_service_is_named_when_nothing_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with (
            raydistill.ServiceClient(base_url=address) as client,
            pytest.raises(ServiceError, match="does not answer") as caught,
        ):
            client.create_sampling_client(model_path="analyst")
    assert address in str(caught.value)


def test_tokenizer_is_the_base_models_when_asked(service, sampler, state):
    tokenizer = sampler.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("Where is it?")) == "Where is it?"
    assert sampler.get_tokenizer() is tokenizer
    base = service.create_sampling_client(base_model=state.base_model)
    assert base.sample(PROMPT).result(timeout=10).sequences[0].tokens == [7, 6, 5, STOP]
    assert len(state.bodies("create_session")) == 1
    assert [body["sampling_session_seq_id"] for body in state.bodies("create_sampling_session")] == [0, 1]


def test_future_is_finished_when_the_clients_are_dropped_and_cancelled_when_closed(state, url):
    state.delay_seconds = 0.5
    future = raydistill.ServiceClient(base_url=url).create_sampling_client(model_path="analyst").sample(PROMPT)
    gc.collect()
    assert future.result(timeout=10).model == VERSION
    client = raydistill.ServiceClient(base_url=url)
    sampler = client.create_sampling_client(model_path="analyst")
    future = sampler.sample(PROMPT)
    client.close()
    client.close()
    with pytest.raises(CancelledError):
        future.result(timeout=5)
    with pytest.raises(ServiceError, match="closed"):
        sampler.sample(PROMPT)
