"""Commands that ask a running service: waiting for a version, and its status."""

import pytest
from fastapi import FastAPI, Header
from fastapi.responses import JSONResponse

from raydistill.registry.aliases import read_aliases
from raydistill.registry.versions import read_version
from tests.loopback import free_port, serve_app

KEY = "tml-of-these-tests"


class Front:
    """A service whose replicas follow as told: `statuses` are answered one after the other, the last for ever."""

    def __init__(self, *statuses, key=None):
        self.statuses = list(statuses)
        self.asked = 0
        self.app = FastAPI()

        @self.app.get("/status")
        def status(x_api_key: str | None = Header(None)):
            if x_api_key != key:
                return JSONResponse({"detail": "wrong or missing API key"}, 401)
            self.asked += 1
            return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


def make_status(*served, refused=None):
    """Return a status of as many replicas as versions are given."""
    replicas = [
        {"replica": f"r{index}", "aliases": {"triage/final": exact}, "refused": refused or {}, "storage_error": None}
        for index, exact in enumerate(served)
    ]
    agreed = {"triage/final": served[0]} if len(set(served)) == 1 else {}
    return {"base_model": "base", "models": [], "aliases": agreed, "refused": refused or {}, "replicas": replicas}


def exact(folder, label):
    return f"triage/{label}@{read_version(f'{folder}/models/triage', label).content_digest}"


def test_promote_waits_until_every_replica_serves_the_version(folder, run):
    old, new = exact(folder, "v0001"), exact(folder, "v0002")
    front = Front(make_status(old, old), make_status(new, old), make_status(old, new), make_status(new, new))
    with serve_app(front.app) as url:
        text = run("promote", "triage", "v0002", "--wait", "--url", url, "--storage", folder)
    assert "every replica serves it" in text
    assert front.asked == 4


def test_promote_does_not_wait_for_a_student_that_sleeps(folder, run):
    asleep = {"base_model": None, "models": [], "aliases": {}, "replicas": [], "asleep": "no replica runs"}
    with serve_app(Front(asleep).app) as url:
        text = run("promote", "triage", "v0002", "--wait", "--url", url, "--timeout", "5", "--storage", folder)
        shown = run("status", "--url", url)
    assert "no replica runs, the next one loads it first" in text
    assert "no replica runs" in shown and "None" not in shown


def test_promote_tells_which_replicas_did_not_follow_in_time(folder, run):
    old, new = exact(folder, "v0001"), exact(folder, "v0002")
    with serve_app(Front(make_status(new, old, old)).app) as url:
        words = ("promote", "triage", "v0002", "--wait", "--url", url, "--timeout", "0.5", "--storage", folder)
        told = " ".join(run(*words, status=1).split())
    assert f"within 0.5 s: triage/final is {new} on 1 of 3 and {old} on 2 of 3" in told


def test_promote_tells_why_a_replica_refused_the_version(folder, run):
    old = exact(folder, "v0001")
    front = Front(make_status(old), make_status(old, refused={"triage/v0002": "the probe failed: 9 nat"}))
    with serve_app(front.app) as url:
        words = ("promote", "triage", "v0002", "--wait", "--url", url, "--storage", folder)
        assert "refused triage/v0002: the probe failed: 9 nat" in run(*words, status=1)


def test_promote_is_not_misled_by_a_refusal_of_before_and_tells_what_cannot_be_read(folder, run):
    old, new = exact(folder, "v0001"), exact(folder, "v0002")
    before = make_status(old, refused={"triage/v0002": "an older verdict"})
    before["replicas"][0]["wanted"] = {"triage/final": "v0001"}
    with serve_app(Front(before, before, make_status(new)).app) as url:
        words = ("promote", "triage", "v0002", "--wait", "--url", url, "--storage", folder)
        assert "every replica serves it" in run(*words)
    slow = make_status(new)
    slow["replicas"][0]["unread"] = {"triage/v0001": "adapter_model.safetensors is missing"}
    with serve_app(Front(slow).app) as url:
        words = ("rollback", "triage", "--wait", "--url", url, "--timeout", "0.5", "--storage", folder)
        assert "is missing" in run(*words, status=1)
        assert "cannot read" in run("status", "--url", url)
    slow["replicas"][0] |= {"unread": {}, "loading": {"triage/v0001": "2026-01-02T03:04:05+00:00"}}
    with serve_app(Front(slow).app) as url:
        words = ("promote", "triage", "v0001", "--wait", "--url", url, "--timeout", "0.5", "--storage", folder)
        assert "it is being loaded since 2026-01-02T03:04:05" in " ".join(run(*words, status=1).split())


def test_nothing_is_moved_where_the_service_to_wait_for_does_not_answer(folder, run):
    for words in (("promote", "triage", "v0002"), ("rollback", "triage")):
        url = f"http://127.0.0.1:{free_port()}"
        told = run(*words, "--wait", "--storage", folder, status=1, RAYDISTILL_BASE_URL=url)
        assert f"{url} does not answer" in told
    assert len(read_aliases(f"{folder}/models/triage").history) == 2


def test_status_tells_what_each_replica_serves_and_refused(folder, run):
    old, new = exact(folder, "v0001"), exact(folder, "v0002")
    status = make_status(new, old, refused={"triage/v0003": "holds a weight of nan"})
    status["replicas"][1]["loading"] = {"triage/v0002": "2026-01-02T03:04:05+00:00"}
    with serve_app(Front(status, key=KEY).app) as url:
        text = run("status", "--url", url, RAYDISTILL_API_KEY=KEY)
        told = run("status", "--json", RAYDISTILL_API_KEY=KEY, RAYDISTILL_BASE_URL=url)
        refused = run("status", "--url", url, status=1, RAYDISTILL_API_KEY="tml-wrong")
    rows = [line.split() for line in text.splitlines()]
    assert ["r0", "triage/final", new] in rows and ["r1", "triage/final", old] in rows
    assert "loading" in text and "triage/v0002 (since 2026-01-02 03:04:05" in text
    assert "base on 2 replicas" in text and "holds a weight of nan" in text
    assert told == {"url": url, **status}
    assert "RAYDISTILL_API_KEY" in refused and "tml-wrong" not in refused


@pytest.mark.parametrize("answer", [[], {"status": "ok"}, "hello"], ids=repr)
def test_status_of_another_server_is_no_status(run, answer):
    with serve_app(Front(answer).app) as url:
        assert "Is it a raydistill service?" in run("status", "--url", url, status=1)
