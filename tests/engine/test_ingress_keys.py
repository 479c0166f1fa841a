"""The front's key: asked for on every route, whatever the client sends; without one the front stays on this machine."""

from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from ray import cloudpickle
from starlette.routing import Route

from raydistill.core.errors import ConfigError
from raydistill.core.keys import hash_key
from raydistill.engine import ingress
from raydistill.engine.config import EngineConfig
from raydistill.engine.ingress import Ingress, check_front, make_ingress
from tests.engine.fake_engine import LIMITS, FakeEngine, make_front

KEY = "tml-secret"


@pytest.fixture
def front():
    """The application with a key, without Serve."""
    return TestClient(make_front(FakeEngine(), key_hash=hash_key(KEY)))


def find_routes(routes, prefix=""):
    """Return (method, path) of every route, those in nested routers too."""
    found = []
    for route in routes:
        if isinstance(route, Route):
            found += [(method, prefix + route.path) for method in sorted(route.methods or ())]
        else:
            found += find_routes(route.routes, prefix + getattr(route, "path", ""))
    return found


def test_every_route_asks_for_the_key(front):
    routes = find_routes(front.app.routes)
    assert len(routes) >= 17, "the walk misses routes"
    assert {path for _, path in routes} >= {"/status", "/v1/chat/completions", "/api/v1/asample", "/healthz"}
    for method, path in [*routes, ("GET", "/no/such/route"), ("OPTIONS", "/status"), ("GET", "/docs")]:
        for headers in ({}, {"X-API-Key": "tml-wrong"}, {"Authorization": "Bearer tml-wrong"}):
            answer = front.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, headers)
            assert KEY not in answer.text
        assert front.request(method, path, headers={"X-API-Key": KEY}).status_code != 401, (method, path)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": b""},
        {"Authorization": b""},
        {"Authorization": b"Bearer"},
        {"Authorization": b"Bearer "},
        {"Authorization": b"Basic " + KEY.encode()},
        {"Authorization": KEY.encode()},
        {"X-API-Key": "schlüssel".encode()},
        {"X-API-Key": b"\xff\xfe\x80"},
        {"Authorization": b"Bearer \xff\xfe\x80"},
        {"X-API-Key": KEY.encode() + b"\xff"},
        {"X-API-Key": KEY.encode() * 1000},
    ],
    ids=lambda headers: repr(headers)[:60],
)
def test_odd_keys_are_401_and_never_500(front, headers):
    assert front.get("/no/such/route", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {KEY}"},
        {"X-API-Key": "", "Authorization": f"Bearer {KEY}"},
        {"X-API-Key": KEY, "Authorization": "Basic c29tZWJvZHk="},
    ],
    ids=repr,
)
def test_right_key_passes_in_either_header(front, headers):
    assert front.get("/no/such/route", headers=headers).status_code == 404


def test_no_key_is_asked_for_where_the_application_has_none():
    assert TestClient(make_front(FakeEngine())).get("/no/such/route").status_code == 404


def test_key_travels_with_the_application_as_a_hash():
    application = make_ingress("engine", KEY, EngineConfig.model_validate({}))
    deployment = application._bound_deployment
    packed = cloudpickle.dumps((deployment.func_or_class, deployment.init_args))
    assert hash_key(KEY).encode() in packed
    assert KEY.encode() not in packed
    assert cloudpickle.loads(packed)


@pytest.mark.parametrize(
    ("host", "refused"),
    [("0.0.0.0", True), ("10.1.2.3", True), ("::", True), ("127.0.0.1", False), ("::1", False), (None, False)],
)
def test_front_that_others_reach_is_refused_when_there_is_no_key(monkeypatch, host, refused):
    client = SimpleNamespace(http_config=SimpleNamespace(host=host))
    monkeypatch.setattr(ingress, "_get_global_client", lambda **_: client)
    check_front(has_key=True)
    if not refused:
        check_front(has_key=False)
        return
    with pytest.raises(ConfigError, match=f"{host}.*RAYDISTILL_API_KEY"):
        Ingress(engine=None, limits=LIMITS)  # pyright: ignore[reportArgumentType]
