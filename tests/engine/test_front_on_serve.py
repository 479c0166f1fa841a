"""The front over real Serve, with an engine that has no model: deaths, clients that leave, draining, zero replicas."""

import concurrent.futures
import threading
import time

import httpx
import pytest

from jobs.runtime import ClusterConfig, start_http
from raydistill.engine.app import stop_application
from raydistill.engine.sampling import encode_session
from tests.engine import stand_in
from tests.engine.bad_requests import CHAT, check, sample
from tests.loopback import free_port

SESSION = encode_session("m")


@pytest.fixture(scope="module")
def url(cluster):
    return start_http(ClusterConfig.model_validate({"http_port": free_port()}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stand-in")


@pytest.fixture(scope="module")
def service(url, folder):
    """An application with a replica for each death, and a request's time that is short."""
    yield url + stand_in.start("standin", folder, num_replicas=4, front={"request_timeout_seconds": 5})
    stop_application("standin")


def test_serve_that_another_job_starts_at_the_same_moment_is_joined(url, monkeypatch):
    from ray import serve
    from ray.exceptions import ActorAlreadyExistsError

    start, refusals = serve.start, [ActorAlreadyExistsError("SERVE_CONTROLLER_ACTOR")]

    def start_late(**options):
        if refusals:
            raise refusals.pop()
        return start(**options)

    monkeypatch.setattr(serve, "start", start_late)
    assert start_http(ClusterConfig.model_validate({"http_port": free_port()})) == url


def ask(service, text, timeout=60.0, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return httpx.post(service + CHAT, json=body, timeout=timeout)


def wait_for(condition, what, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def ending(folder, name):
    """Return how the replica's work ended, None as long as it goes on."""
    file = folder / name
    return file.read_text() if file.exists() else None


def test_what_finds_its_engine_gone_is_asked_at_another_replica_each_time(service):
    path, body = sample(SESSION, prompt={"chunks": [{"type": "encoded_text", "tokens": [3, 103]}]})
    for index in range(40):
        for stream in (False, True):
            answer = ask(service, "gone chat-gone", stream=stream)
            assert answer.status_code == 200 and "error" not in answer.text, (index, stream, answer.text)
        request_id = httpx.post(service + path, json=body | {"seq_id": 200 + index}, timeout=60).json()["request_id"]
        answer = httpx.post(f"{service}/api/v1/retrieve_future", json={"request_id": request_id}, timeout=60)
        assert answer.headers["content-type"] == "application/x-protobuf", (index, answer.text)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_answered_by_another_replica_when_its_own_dies(service, folder, stream):
    answer = ask(service, f"die chat{stream}", stream=stream)
    assert answer.status_code == 200, answer.text
    assert (folder / f"chat{stream}").read_text() == "died"
    assert "error" not in answer.text


def test_a_sample_is_answered_by_another_replica_when_its_own_dies(service, folder):
    path, body = sample(SESSION, prompt={"chunks": [{"type": "encoded_text", "tokens": [1, 101]}]})
    request_id = httpx.post(service + path, json=body, timeout=60).json()["request_id"]
    answer = httpx.post(f"{service}/api/v1/retrieve_future", json={"request_id": request_id}, timeout=60)
    assert answer.headers["content-type"] == "application/x-protobuf", answer.text
    assert (folder / "101").read_text() == "died"


def test_the_replica_stops_when_the_client_leaves(service, folder):
    body = {"model": "m", "messages": [{"role": "user", "content": "slow 20 left-stream"}], "stream": True}
    with httpx.stream("POST", service + CHAT, json=body, timeout=60) as answer:
        next(answer.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        ask(service, "slow 20 left-whole", timeout=0.5)
    path, body = sample(SESSION, prompt={"chunks": [{"type": "encoded_text", "tokens": [2, 102]}]}, seq_id=1)
    request_id = httpx.post(service + path, json=body, timeout=60).json()["request_id"]
    time.sleep(0.3)
    httpx.post(f"{service}/api/v1/cancel_future", json={"request_id": request_id}, timeout=60)
    for name in ("left-stream", "left-whole", "102"):
        wait_for(lambda name=name: ending(folder, name), f"the end of {name}", 6)
        assert ending(folder, name) == "cancelled"
    assert httpx.get(f"{service}/status", timeout=30).json()["front"]["rows"] == 0


def test_the_servers_time_holds_whatever_a_client_asks_of_the_proxy(service, folder):
    body = {"model": "m", "messages": [{"role": "user", "content": "slow 30 late"}]}
    headers = {"x-request-timeout-seconds": "100", "x-request-disconnect-disabled": "?1"}
    asked = time.monotonic()
    check(httpx.post(service + CHAT, json=body, headers=headers, timeout=60), 504, "timeout", None)
    assert time.monotonic() - asked < 20
    wait_for(lambda: ending(folder, "late"), "the end of the work", 5)
    assert ending(folder, "late") == "cancelled"


def test_what_finds_the_only_engine_gone_is_answered_when_serve_has_replaced_it(url, folder):
    service = url + stand_in.start("lonely", folder, num_replicas=1)
    path, body = sample(SESSION, prompt={"chunks": [{"type": "encoded_text", "tokens": [4, 104]}]})
    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            chats = [pool.submit(ask, service, "broken 104", stream=stream) for stream in (False, True)]
            request_id = httpx.post(service + path, json=body, timeout=60).json()["request_id"]
            done = httpx.post(f"{service}/api/v1/retrieve_future", json={"request_id": request_id}, timeout=60)
            answers = [chat.result() for chat in chats]
        assert done.headers["content-type"] == "application/x-protobuf", done.text
        assert all(answer.status_code == 200 and "error" not in answer.text for answer in answers), answers
        assert ending(folder, "104") not in (None, answers[0].json()["model"]), "another replica answered"
        answer = ask(service, "die lonely")
        assert answer.status_code == 200 and ending(folder, "lonely") == "died", answer.text
    finally:
        stop_application("lonely")


def test_a_replica_waits_longer_for_its_requests_than_one_may_take(service):
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    app = client.get_serve_details()["applications"]["standin"]
    assert set(app["deployments"]) == {"engine", "ingress"}
    for deployment in app["deployments"].values():
        assert deployment["deployment_config"]["graceful_shutdown_timeout_s"] == 10


def test_the_engine_comes_from_zero_with_a_request_and_goes_back(url, folder):
    scaling = {"min_replicas": 0, "max_replicas": 1, "upscale_delay_seconds": 0, "downscale_delay_seconds": 1}
    service = url + stand_in.start("sleeper", folder, autoscaling=scaling)

    def status():
        return httpx.get(f"{service}/status", timeout=30)

    try:
        assert status().status_code == 200 and status().json()["replicas"] == []
        assert "next request" in status().json()["asleep"]
        answer = ask(service, "hello")
        assert answer.status_code == 200, answer.text
        assert len(status().json()["replicas"]) == 1
        wait_for(lambda: status().json()["replicas"] == [], "no replica", 90)
        assert ask(service, "hello again").status_code == 200
    finally:
        stop_application("sleeper")


def test_a_request_that_runs_is_answered_while_its_application_goes(service, folder):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(service, "slow 2 drained")))
    thread.start()
    wait_for(lambda: httpx.get(f"{service}/status", timeout=30).json()["front"]["rows"] == 1, "the request")
    stop_application("standin")
    thread.join()
    assert answers[0].status_code == 200, answers[0].text
    assert ending(folder, "drained") == "done"
