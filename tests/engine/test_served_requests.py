"""A real student behind the front: bad requests leave no trace, abandoned ones free the engine, all is counted."""

import concurrent.futures
import json
import time
from pathlib import Path

import httpx
import pytest

import raydistill
from raydistill import types
from tests.engine.bad_requests import CHAT, CHATS, JSON, RAW, chat, check, sample, samples
from tests.series import read_series


@pytest.fixture(scope="module")
def session(world):
    return open_session(world)


def open_session(world, path="tinker://tiny/final"):
    answer = httpx.post(f"{world.url}/api/v1/create_sampling_session", json={"model_path": path}, timeout=60)
    return answer.json()["sampling_session_id"]


def greedy(world):
    client = raydistill.ServiceClient(world.url).create_sampling_client(model_path="raydistill://tiny/final")
    params = types.SamplingParams(max_tokens=6, temperature=0.0, stop=[])
    return client.sample(types.ModelInput.from_ints([5, 9, 33, 70]), sampling_params=params).result(60)


def status(world):
    return httpx.get(f"{world.url}/status", timeout=30).json()


def replica_ids(world):
    return [replica["replica"] for replica in status(world)["replicas"]]


def test_bad_requests_are_refused_and_leave_replica_and_answers_as_they_were(world, session):
    before, replicas = greedy(world), replica_ids(world)
    with httpx.Client(base_url=world.url, timeout=60) as client:
        for (path, body), *expected in CHATS + samples(session):
            content = json.dumps(body).replace("Infinity", "1e400").encode()
            check(client.post(path, content=content, headers=JSON), *expected)
        for _, content, headers, expected_status, _ in RAW:
            assert client.post(CHAT, content=content, headers=headers).status_code == expected_status
    assert replica_ids(world) == replicas
    after = greedy(world)
    assert (after.model, after.sequences) == (before.model, before.sequences)


def test_what_scores_prompts_is_refused_eight_at_a_time_and_the_engine_lives(world, session):
    before, replicas = greedy(world), replica_ids(world)
    models = ("tiny", status(world)["base_model"])
    bodies = [chat(model=model, prompt_logprobs=1, echo=True, logprobs=True) for model in models] * 4
    bodies += [sample(session, prompt_logprobs=True, seq_id=900 + index) for index in range(8)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda case: httpx.post(world.url + case[0], json=case[1], timeout=60), bodies))
    assert {answer.status_code for answer in answers} == {422, 400}
    assert replica_ids(world) == replicas
    assert greedy(world).sequences == before.sequences


def test_headers_of_a_client_change_nothing_and_ids_may_be_the_same(world):
    body = chat(temperature=0)[1]
    plain = httpx.post(world.url + CHAT, json=body, timeout=60).json()["choices"]
    headers = {"serve_multiplexed_model_id": "evil", "x-request-disconnect-disabled": "?1", "x-request-id": "same"}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        send = lambda _: httpx.post(world.url + CHAT, json=body, headers=headers, timeout=60)  # noqa: E731
        answers = list(pool.map(send, range(4)))
    assert [answer.json()["choices"] for answer in answers] == [plain] * 4
    assert [answer.headers.get_list("x-request-id") for answer in answers] == [["same"]] * 4


def test_an_abandoned_request_leaves_nothing_running_in_the_engine(world, session):
    path, body = sample(session, {"max_tokens": 370, "stop": []}, num_samples=32, seq_id=77)
    request_id = httpx.post(world.url + path, json=body, timeout=60).json()["request_id"]
    wait_for(lambda: status(world)["replicas"][0]["running"] > 0, "the engine takes the rows")
    assert httpx.post(f"{world.url}/api/v1/cancel_future", json={"request_id": request_id}, timeout=60).is_success
    wait_for(lambda: status(world)["replicas"][0]["running"] == 0, "the engine is empty")
    assert status(world)["front"]["rows"] == 0


def test_every_answer_is_counted_by_alias_and_version_and_logged_with_its_id(world, session):
    import ray

    version = greedy(world).model
    headers = {"x-request-id": "look-for-me"}
    assert httpx.post(world.url + CHAT, json=chat()[1], headers=headers, timeout=60).status_code == 200
    path, body = sample(session, {"max_tokens": 370, "stop": []}, num_samples=16, seq_id=78)
    cut = httpx.post(world.url + path, json=body, timeout=60).json()["request_id"]
    wait_for(lambda: status(world)["replicas"][0]["running"] > 0, "the engine takes the rows")
    httpx.post(f"{world.url}/api/v1/cancel_future", json={"request_id": cut}, timeout=60)
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {
        ("requests_total", "stop"),
        ("requests_total", "aborted"),
        ("prompt_tokens_total", ""),
        ("prompt_tokens_saved_total", ""),
        ("completion_tokens_total", ""),
        ("request_seconds_count", ""),
        ("first_token_seconds_count", ""),
    }

    def found():
        told = set()
        for name, labels, value in read_series(port):
            if (labels.get("alias"), labels.get("version")) == ("tiny/final", version) and value > 0:
                told.add((name, labels.get("outcome", "")))
        return wanted <= told

    wait_for(found, "the series of tiny/final", 40)
    codes = {labels["code"] for name, labels, _ in read_series(port) if name == "http_responses_total"}
    assert {"", "unknown_field", "malformed_json"} <= codes
    logs = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    lines = [line for file in logs.glob("replica_student_*") for line in file.read_text().splitlines()]
    (told,) = [json.loads(line) for line in lines if '"client_request_id": "look-for-me"' in line]
    assert (told["route"], told["status"], told["answered_by"]) == (CHAT, 200, version)
    assert any('"request_id": "look-for-me"' in line and "answer_chat" in line for line in lines), "the replica's line"


def test_the_openai_sdk_chats_whole_and_streamed_and_names_the_fault_of_a_request(world):
    openai = pytest.importorskip("openai", reason="vllm brings it")
    client = openai.OpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "I lost my parcel."}], "max_tokens": 8}
    whole = client.chat.completions.create(**asked, temperature=0, logprobs=True, top_logprobs=2)
    parts = list(client.chat.completions.create(**asked, temperature=0, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert {whole.model, *(part.model for part in parts)} == {greedy(world).model}
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens > 0
    assert "tiny/final" in {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError, match="tiny/final"):
        client.chat.completions.create(**asked | {"model": "nobody"})
    with pytest.raises(openai.UnprocessableEntityError, match="max_tokens"):
        client.chat.completions.create(**asked | {"max_tokens": -1})


def wait_for(condition, what, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
