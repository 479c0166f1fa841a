"""Waiting for a store that is away."""

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError

from raydistill.core import patience, s3, storage
from raydistill.core.errors import ConflictError, StorageError, UnavailableError
from raydistill.core.patience import patiently, replace_patiently
from tests.loopback import free_port


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.001)


def make_store(failures: list[Exception]):
    def read() -> str:
        if failures:
            raise failures.pop(0)
        return "there"

    return read


def make_client_error(code: str, status: int) -> ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "ListObjectsV2")


def test_a_store_that_comes_back_is_waited_for(caplog):
    assert patiently(make_store([UnavailableError("away"), UnavailableError("away")])) == "there"
    assert caplog.text.count("away Trying again.") == 2


def test_patience_ends():
    with pytest.raises(UnavailableError, match="away"):
        patiently(make_store([UnavailableError("away")] * 1000), patience_seconds=0.05)


def test_an_answer_is_an_answer():
    failures: list[Exception] = [ConflictError("moved"), ConflictError("moved")]
    with pytest.raises(ConflictError):
        patiently(make_store(failures))
    assert len(failures) == 1


def test_a_store_that_takes_no_connection_is_away_not_broken(monkeypatch):
    """What is raised says whether it is waited for; an object store that restarts refuses connections."""
    for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{free_port()}"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    quick = s3.make_client(connect_seconds=1, read_seconds=1, attempts=1)
    with pytest.raises(UnavailableError, match="Could not connect"), s3.errors("s3://bucket/key"):
        quick.get_object(Bucket="bucket", Key="key")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (make_client_error("502", 502), UnavailableError),
        (make_client_error("403", 403), StorageError),
        (make_client_error("NoSuchBucket", 404), StorageError),
        (CredentialRetrievalError(provider="agent", error_msg="connection refused"), UnavailableError),
        (NoCredentialsError(), StorageError),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_gateway_or_an_agent_may_come_back_and_a_missing_bucket_does_not(fault, kind):
    with pytest.raises(StorageError) as caught, s3.errors("s3://bucket/key"):
        raise fault
    assert type(caught.value) is kind


def test_a_write_whose_answer_was_lost_is_no_conflict(tmp_path, monkeypatch):
    uri, write = str(tmp_path / "a"), storage.write_bytes

    def write_and_say_nothing(uri: str, data: bytes, if_match: str) -> str:
        write(uri, data, if_match)
        monkeypatch.setattr(storage, "write_bytes", write)
        raise UnavailableError("cut")

    monkeypatch.setattr(storage, "write_bytes", write_and_say_nothing)
    etag = replace_patiently(uri, b"one", storage.ABSENT)
    assert storage.read(uri) == (b"one", etag)
    storage.write_bytes(uri, b"of somebody else")
    with pytest.raises(ConflictError):
        replace_patiently(uri, b"two", etag)
