"""What the front refuses before an engine sees it, and how; `test_served_requests` sends the same to one."""

import asyncio
import json

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from raydistill.engine.sampling import encode_session
from tests.engine.bad_requests import CHAT, CHATS, JSON, RAW, chat, check, sample, samples
from tests.engine.fake_engine import FakeEngine, make_front

TOO_LONG = (  # as vllm says it
    "This model's maximum context length is 384 tokens. However, you requested 16 output tokens and your prompt "
    "contains at least 369 input tokens, for a total of at least 385 tokens. Please reduce the length of the input "
    "prompt or the number of requested output tokens. (parameter=input_tokens, value=369)"
)
BY_FRONT = [case for case in CHATS if case[1] != 404]  # the engine's replica resolves a chat's model


def name(case):
    return f"{case[0][0].rsplit('/', 1)[-1]}-{str(case[0][1])[-60:]}-{case[3]}"


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def front(engine):
    with TestClient(make_front(engine)) as client:  # one event loop for all requests of a test
        yield client


@pytest.mark.parametrize("case", BY_FRONT + samples(encode_session("tiny")), ids=name)
def test_a_bad_request_is_refused_by_name_and_asks_no_engine(front, engine, case):
    (path, body), *expected = case
    check(front.post(path, content=_encode(body), headers=JSON), *expected)
    assert engine.asked == []


def _encode(body):
    """Return JSON as another client may write it: an infinite number as 1e400, which JSON allows."""
    return json.dumps(body).replace("Infinity", "1e400").encode()


@pytest.mark.parametrize(("content", "headers", "status", "code"), [case[1:] for case in RAW], ids=[c[0] for c in RAW])
def test_a_malformed_body_is_refused_on_every_route(front, engine, content, headers, status, code):
    for path in (CHAT, "/api/v1/asample", "/api/v1/create_session", "/api/v1/telemetry"):
        answer = front.post(path, content=content, headers=headers)
        field = answer.json()["error"]["field"]
        check(answer, status, code, field)
    assert engine.asked == []


def test_two_content_types_are_refused(front):
    headers = [("content-type", "application/json"), ("content-type", "text/plain")]
    check(front.post(CHAT, content=b"{}", headers=headers), 415, "unsupported_media_type", "content-type")


def test_a_body_that_is_too_long_is_refused_while_it_comes_in():
    app, sent, pulled = make_front(FakeEngine(), max_body_bytes=100_000), [], 0

    async def receive():
        nonlocal pulled
        pulled += 1
        assert pulled < 100, "the front reads on and on"
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "scheme": "http"}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413 and pulled == 11

    sent, pulled = [], 0
    scope["headers"] = [*scope["headers"][:1], (b"content-length", b"100001")]
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413 and pulled == 0, "its length is known before it comes"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/no/such/route", 404, "unknown_route"),
        ("POST", "/v1/completions", 404, "unknown_route"),
        ("POST", "/v1/embeddings", 404, "unknown_route"),
        ("POST", "/v1/load_lora_adapter", 404, "unknown_route"),
        ("POST", "/pause", 404, "unknown_route"),
        ("POST", "/invocations", 404, "unknown_route"),
        ("GET", "/metrics", 404, "unknown_route"),
        ("GET", "/docs", 404, "unknown_route"),
        ("GET", "/openapi.json", 404, "unknown_route"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/status", 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
    ],
)
def test_other_routes_and_methods_are_refused_in_the_same_form(front, method, path, status, code):
    check(front.request(method, path), status, code, None)


def test_what_is_known_passes_and_reaches_the_engine(front, engine):
    path, body = chat(n=2, temperature=0, top_p=1, seed=-5, stop=["a"], logprobs=True, top_logprobs=20, user="me")
    answer = front.post(path, json={**body, "stream": None, "max_completion_tokens": None})
    assert answer.status_code == 200, answer.text
    assert engine.asked[0]["top_logprobs"] == 20 and "user" not in engine.asked[0]
    assert "seed" in engine.asked[0] and engine.asked[0]["stream"] is False
    path, body = sample(encode_session("tiny"), {"stop": [2], "seed": 1}, num_samples=2, a_field_of_a_later_sdk=[1])
    answer = front.post(path, json=body)
    assert answer.status_code == 200, answer.text
    request_id = answer.json()["request_id"]
    done = front.post("/api/v1/retrieve_future", json={"request_id": request_id})
    assert done.headers["content-type"] == "application/x-protobuf", done.text
    assert [row.seed for row in engine.asked[1]] == [1, 2]


def test_cors_is_off_unless_it_is_configured(front):
    origin = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for answer in (front.get("/status", headers=origin), front.options(CHAT, headers=origin)):
        assert not [header for header in answer.headers if header.startswith("access-control")]
    allowed = TestClient(make_front(FakeEngine(), cors_origins=("https://good.example",)))
    good = allowed.get("/status", headers={"origin": "https://good.example"})
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-origin" not in allowed.get("/status", headers=origin).headers


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("", False), ("a b", False), ("x" * 101, False)])
def test_a_sane_request_id_is_taken_and_another_is_made(front, engine, given, kept):
    answer = front.post(CHAT, json=chat()[1], headers={"x-request-id": given})
    told = engine.asked[0]["request_id"]
    assert (told == given) is kept
    assert answer.headers.get("x-request-id") == (None if kept else told), "Serve's proxy returns the one that came in"


@pytest.mark.parametrize(
    "header",
    ["x-request-timeout-seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id", "X-Session-Id"],
)
def test_headers_that_would_override_the_servers_limits_are_dropped(header):
    seen = []
    app = make_front(FakeEngine())

    @app.get("/seen")
    async def look(request: Request):
        seen.extend(request.headers)
        return {}

    TestClient(app).get("/seen", headers={header: "1", "x-other": "1"})
    assert "x-other" in seen and header.lower() not in seen


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_nobody_foresaw_shows_no_text_of_it(stream):
    engine = FakeEngine(faults=[RuntimeError("/home/secret/model.safetensors is broken")])
    front = TestClient(make_front(engine))
    answer = front.post(CHAT, json=chat(stream=stream)[1])
    check(answer, 500, "internal", None)
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ({"code": 400, "message": TOO_LONG}, 400, "refused_by_engine"),
        ({"code": 404, "message": "'x' is not served here. Known: tiny/final."}, 404, "unknown_model"),
        ({"code": 400, "message": "could not open /home/secret/x.py"}, 400, "refused_by_engine"),
        ({"code": 400, "message": "could not open secret"}, 400, "refused_by_engine"),
        ({"code": 400, "message": f"{TOO_LONG} /tmp/secret"}, 400, "refused_by_engine"),
        ({"code": 422, "message": "conversation roles must alternate, secret"}, 422, "refused_by_engine"),
        ({"code": 503, "message": "secret"}, 503, "version_unavailable"),
        ({"code": 500, "message": "secret"}, 500, "internal"),
        ({"message": "secret"}, 500, "internal"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_own_refusals_are_told_in_our_form(error, status, code, stream):
    front = TestClient(make_front(FakeEngine(parts=[{"error": error}])))
    answer = front.post(CHAT, json=chat(stream=stream)[1])
    check(answer, status, code, "model" if status in (404, 503) else None)
    assert "secret" not in answer.text
    shown = answer.json()["error"]["message"]
    assert (shown == TOO_LONG) is (error["message"] == TOO_LONG) and "roles" not in shown
