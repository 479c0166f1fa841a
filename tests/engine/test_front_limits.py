"""The front's limits without Ray: places and time."""

import asyncio
from types import SimpleNamespace

import pytest

from raydistill.core.errors import ServiceError
from raydistill.engine.sampling import encode_session
from tests.engine.bad_requests import CHAT, CREATE, SAMPLE, chat, check, sample
from tests.engine.fake_engine import VERSION, Answer, FakeEngine, run

SESSION = encode_session("tiny")


@pytest.mark.parametrize("stream", [False, True])
def test_one_chat_too_many_is_429_at_once_and_its_place_comes_back(stream):
    engine = FakeEngine(wait_seconds=0.5)

    async def test(client, front):
        running = [asyncio.create_task(client.post(CHAT, json=chat(n=4, stream=stream)[1])) for _ in range(2)]
        await asyncio.sleep(0.1)
        answer = await client.post(CHAT, json=chat()[1])
        assert not any(task.done() for task in running), "it was not answered at once"
        check(answer, 429, "overloaded", None)
        assert answer.headers["retry-after"] == "3"
        assert (await client.get("/status")).json()["front"] == {"rows": 8, "max_rows": 8}
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        assert front.rows == 0
        assert (await client.post(CHAT, json=chat(stream=stream)[1])).status_code == 200

    run(engine, test)


def test_one_sample_too_many_is_429_at_submission_and_the_same_id_takes_no_second_place():
    async def test(client, front):
        path, body = sample(SESSION, num_samples=8)
        first = await client.post(path, json=body)
        again = await client.post(path, json=body)
        assert first.json()["request_id"] == again.json()["request_id"]
        check(await client.post(path, json={**body, "seq_id": 1, "num_samples": 1}), 429, "overloaded", None)
        waiting = {"request_id": first.json()["request_id"]}
        done = await client.post("/api/v1/retrieve_future", json=waiting)
        assert done.headers["x-raydistill-model"] == VERSION
        assert front.rows == 0
        assert (await client.post(path, json={**body, "seq_id": 1})).status_code == 200

    run(FakeEngine(wait_seconds=0.3), test)


def test_a_front_whose_engine_is_not_up_yet_lets_no_more_wait_than_one_that_is():
    engine = FakeEngine()
    engine.info = SimpleNamespace(remote=lambda **_: Answer(engine, asyncio.sleep(30)))

    async def test(client, front):
        waiting = [asyncio.create_task(client.post(CHAT, json=chat()[1])) for _ in range(2)]
        await asyncio.sleep(0.1)
        check(await client.post(CHAT, json=chat()[1]), 429, "overloaded", None)
        check(await client.post(SAMPLE, json=sample(SESSION)[1]), 429, "overloaded", None)
        for answer in await asyncio.gather(*waiting):
            check(answer, 504, "timeout", None)
        assert front.rows == 0

    run(engine, test, max_rows=2, timeout_seconds=1)


def test_time_counts_from_arrival_and_not_from_each_question_to_the_engine():
    engine = FakeEngine(wait_seconds=0.6)
    describe = engine.info.remote

    async def slow():
        await asyncio.sleep(0.6)
        return await describe()

    engine.info = SimpleNamespace(remote=lambda **_: Answer(engine, slow()))

    async def test(client, front):
        check(await client.post(CHAT, json=chat()[1]), 504, "timeout", None)
        assert (await client.post(CHAT, json=chat()[1])).status_code == 200, "the engine is known now"

    run(engine, test, timeout_seconds=1)


def test_a_body_that_stops_in_the_middle_is_408_and_holds_no_place():
    async def half():
        yield b'{"model": '
        await asyncio.sleep(30)

    async def test(client, front):
        headers = {"content-type": "application/json"}
        answer = await client.post(CHAT, content=half(), headers=headers)
        check(answer, 408, "body_timeout", None)
        assert answer.headers["connection"] == "close"

    run(FakeEngine(), test, timeout_seconds=0.2)


def test_a_chat_with_more_answers_than_there_are_places_is_told_so_and_not_to_try_again():
    async def test(client, front):
        check(await client.post(CHAT, json=chat(n=9)[1]), 422, "invalid_value", "n")
        assert (await client.post(CHAT, json=chat(n=8)[1])).status_code == 200

    run(FakeEngine(), test)


def test_a_front_that_is_full_opens_no_session_and_still_says_what_is_served():
    engine = FakeEngine(wait_seconds=0.5)

    async def test(client, front):
        running = asyncio.create_task(client.post(CHAT, json=chat(n=8)[1]))
        await asyncio.sleep(0.1)
        session = {"session_id": "s", "sampling_session_seq_id": 0, "model_path": "tinker://tiny/final"}
        check(await client.post(CREATE, json=session), 429, "overloaded", None)
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["base", "tiny/final"]
        known = (await client.get("/api/v1/get_server_capabilities")).json()["supported_models"]
        assert [model["model_name"] for model in known] == ["base", "tiny/final"]
        assert (await running).status_code == 200 and front.rows == 0

    run(engine, test)


@pytest.mark.parametrize("is_read", [False, True])
def test_results_that_are_too_much_together_go_the_first_first(is_read):
    async def test(client, front):
        path, body = sample(SESSION)
        client.futures.max_bytes = 3 * 2500
        ids = []
        for number in range(6):
            ids.append((await client.post(path, json=body | {"seq_id": number})).json()["request_id"])
            await asyncio.sleep(0.02)
            if number == 3 and is_read:
                assert (await retrieve(client, ids[3])).status_code == 200
        statuses = [(await retrieve(client, request_id)).status_code for request_id in ids]
        assert statuses == ([410, 410, 200, 410, 200, 200] if is_read else [410, 410, 410, 200, 200, 200])

    run(FakeEngine(), test)


def retrieve(client, request_id):
    return client.post("/api/v1/retrieve_future", json={"request_id": request_id})


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_that_takes_too_long_is_504_and_given_up_at_the_replica(stream):
    engine = FakeEngine(wait_seconds=30)

    async def test(client, front):
        answer = await client.post(CHAT, json=chat(stream=stream)[1])
        check(answer, 504, "timeout", None)
        assert (engine.cancelled, front.rows) == (1, 0)

    run(engine, test, timeout_seconds=0.2)


def test_a_sample_that_takes_too_long_fails_and_is_not_asked_again():
    engine = FakeEngine(wait_seconds=30)

    async def test(client, front):
        request_id = (await client.post(SAMPLE, json=sample(SESSION)[1])).json()["request_id"]
        answer = await client.post("/api/v1/retrieve_future", json={"request_id": request_id})
        assert answer.status_code == 200, "a 5xx would be asked again without a pause"
        assert answer.json()["category"] == "server" and answer.json()["code"] == "timeout"
        assert (engine.cancelled, front.rows) == (1, 0)

    run(engine, test, timeout_seconds=0.2)


def test_a_version_that_cannot_be_read_now_is_503_on_the_token_routes_too():
    away = ServiceError("tiny/v0001 cannot be read now; try again.")
    engine = FakeEngine(faults=[away])
    engine.resolve_name = SimpleNamespace(remote=lambda *_, **__: Answer(engine, engine._work()))

    async def test(client, front):
        session = {"session_id": "s", "sampling_session_seq_id": 0, "model_path": "raydistill://tiny/v0001"}
        answer = await client.post("/api/v1/create_sampling_session", json=session)
        check(answer, 503, "version_unavailable", "model")
        engine.faults = [away]
        request_id = (await client.post(SAMPLE, json=sample(SESSION)[1])).json()["request_id"]
        done = await client.post("/api/v1/retrieve_future", json={"request_id": request_id})
        assert done.json()["code"] == "version_unavailable" and done.json()["category"] == "server"

    run(engine, test)


def test_a_cancelled_sample_is_given_up_at_the_replica():
    engine = FakeEngine(wait_seconds=30)

    async def test(client, front):
        request_id = (await client.post(SAMPLE, json=sample(SESSION)[1])).json()["request_id"]
        await asyncio.sleep(0.05)
        assert (await client.post("/api/v1/cancel_future", json={"request_id": request_id})).status_code == 204
        await asyncio.sleep(0.05)
        assert (engine.cancelled, front.rows) == (1, 0)
        answer = await client.post("/api/v1/retrieve_future", json={"request_id": request_id})
        check(answer, 410, "lost", "request_id")

    run(engine, test)
