"""The front where replicas die, without Ray: one more try, patience, and an end that is told."""

import json

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from raydistill.core.errors import EngineGoneError, EngineLostError
from raydistill.engine import front as rooms
from raydistill.engine.sampling import encode_session
from tests.engine.bad_requests import CHAT, SAMPLE, chat, check, sample
from tests.engine.fake_engine import FakeEngine, run

SESSION = encode_session("tiny")


def lost_engine(kind=EngineLostError):
    """What a call raises whose replica's engine is gone."""
    return RayTaskError("generate", "", kind("gone")).as_instanceof_cause()


DEATHS = [ActorDiedError(), ActorUnavailableError("away", b"\x01" * 16), lost_engine()]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: type(death).__name__)
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_whose_replica_dies_before_the_first_token_is_asked_once_more(death, stream):
    async def test(client, front):
        assert (await client.post(CHAT, json=chat(stream=stream)[1])).status_code == 200
        assert len(front.engine.asked) == 2

    run(FakeEngine(faults=[death]), test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_asked_twice_and_no_more(stream):
    async def test(client, front):
        answer = await client.post(CHAT, json=chat(stream=stream)[1])
        check(answer, 503, "replica_lost", None)
        assert answer.headers["retry-after"] == "5"
        assert len(front.engine.asked) == 2

    run(FakeEngine(faults=DEATHS), test)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("death", [[], DEATHS[:1]], ids=["found gone", "died, then found gone"])
def test_a_request_that_finds_the_engine_gone_waits_for_another(death, stream, monkeypatch):
    monkeypatch.setattr(rooms, "PAUSE_SECONDS", 0.01)
    faults = [*death, *(lost_engine(EngineGoneError) for _ in range(5))]

    async def test(client, front):
        assert (await client.post(CHAT, json=chat(stream=stream)[1])).status_code == 200
        assert len(front.engine.asked) == len(faults) + 1
        front.engine.faults = list(faults)
        request_id = (await client.post(SAMPLE, json=sample(SESSION)[1])).json()["request_id"]
        answer = await client.post("/api/v1/retrieve_future", json={"request_id": request_id})
        assert answer.headers["content-type"] == "application/x-protobuf", answer.text
        assert front.rows == 0

    run(FakeEngine(faults=list(faults)), test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_for_which_no_engine_comes_is_503_at_its_end(stream):
    async def test(client, front):
        check(await client.post(CHAT, json=chat(stream=stream)[1]), 503, "replica_lost", None)
        assert len(front.engine.asked) in (2, 3)
        assert front.rows == 0

    run(FakeEngine(faults=[lost_engine(EngineGoneError) for _ in range(50)]), test, timeout_seconds=0.8)


def test_a_stream_whose_replica_dies_later_ends_with_an_error_and_is_not_begun_anew():
    part = 'data: {"choices": [], "model": "m"}\n\n'

    async def test(client, front):
        answer = await client.post(CHAT, json=chat(stream=True)[1])
        first, error, end = [line for line in answer.text.splitlines() if line]
        assert answer.status_code == 200 and first == part.strip() and end == "data: [DONE]"
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_lost"
        assert (len(front.engine.asked), front.rows) == (1, 0)

    run(FakeEngine(parts=[part, ActorDiedError()]), test)


@pytest.mark.parametrize(("deaths", "state"), [(1, 200), (2, 410)])
def test_a_sample_whose_replica_dies_is_asked_once_more_and_then_left_to_its_client(deaths, state):
    async def test(client, front):
        request_id = (await client.post(SAMPLE, json=sample(SESSION)[1])).json()["request_id"]
        answer = await client.post("/api/v1/retrieve_future", json={"request_id": request_id})
        assert answer.status_code == state, answer.text
        assert len(front.engine.asked) == 2

    run(FakeEngine(faults=DEATHS[:deaths]), test)


def test_a_fault_that_is_no_death_is_not_tried_again():
    async def test(client, front):
        check(await client.post(CHAT, json=chat()[1]), 500, "internal", None)
        request_id = (await client.post(SAMPLE, json=sample(SESSION)[1])).json()["request_id"]
        answer = await client.post("/api/v1/retrieve_future", json={"request_id": request_id})
        assert answer.json()["category"] == "server" and "secret" not in answer.text
        assert len(front.engine.asked) == 2

    run(FakeEngine(faults=[RuntimeError("secret"), RuntimeError("secret")]), test)


def test_a_front_whose_engine_sleeps_says_so_and_one_without_an_engine_is_unavailable():
    class Nobody(FakeEngine):
        async def _statuses(self, timeout_s, return_exceptions):
            return []

    async def status(client, _front):
        return await client.get("/status")

    async def models(client, front):
        front.engine.info = None  # asking would wake it
        assert (await client.get("/v1/models")).json()["data"] == []
        return (await client.get("/api/v1/get_server_capabilities")).json()["supported_models"]

    assert run(Nobody(), models, may_sleep=True) == []
    asleep = run(Nobody(), status, may_sleep=True)
    assert asleep.status_code == 200 and "next request" in asleep.json()["asleep"]
    check(run(Nobody(), status), 503, "no_replica", None)
