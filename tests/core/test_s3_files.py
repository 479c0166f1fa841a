"""pyarrow's file system goes where boto3 goes, with the same key, and never takes the key along."""

import json
import os
import pickle
import time

import pytest
from pyarrow import fs

from raydistill.core import s3, storage
from raydistill.core.errors import StorageError
from raydistill.core.s3_files import S3Files
from tests.core.loopback_store import Store, Website, listen
from tests.core.test_preflight import free_port
from tests.moto_bucket import open_bucket

SECRET = "sEcReT-of-these-tests"


@pytest.fixture
def only(monkeypatch, tmp_path):
    """A function that leaves exactly these AWS settings, and no files of the user's."""

    def use(**settings: str) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        files = {"AWS_CONFIG_FILE": tmp_path / "config", "AWS_SHARED_CREDENTIALS_FILE": tmp_path / "credentials"}
        for name, value in {**files, "AWS_EC2_METADATA_DISABLED": "true", **settings}.items():
            monkeypatch.setenv(name, str(value))
        s3.session.cache_clear()
        s3.client.cache_clear()

    yield use
    s3.session.cache_clear()
    s3.client.cache_clear()


def keys_of(store: type[Store], uri: str) -> tuple[str, str]:
    """Return the access key ids that boto3 and pyarrow sign a request for one object with."""
    store.keys_used.clear()
    assert storage.read_bytes(uri) == b"content"
    with_boto = set(store.keys_used)
    store.keys_used.clear()
    files, path = storage.filesystem(uri)
    with files.open_input_stream(path) as stream:
        assert stream.read() == b"content"
    (boto_key,), (arrow_key,) = with_boto, set(store.keys_used)
    return boto_key, arrow_key


def test_environment_and_profiles_give_pyarrow_the_key_of_boto3(only, tmp_path):
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = of-default\naws_secret_access_key = {SECRET}\n"
        f"[work]\naws_access_key_id = of-work\naws_secret_access_key = {SECRET}\n"
    )
    with listen(Store, objects={"b/k": b"content"}) as (url, store):
        (tmp_path / "config").write_text(f"[profile work]\nregion = eu-central-1\nendpoint_url = {url}\n")
        only(AWS_PROFILE="work")  # endpoint and region stand in the profile alone
        assert keys_of(store, "s3://b/k") == ("of-work", "of-work")
        assert storage.filesystem("s3://b/k")[0].region == "eu-central-1"
        with (tmp_path / "config").open("a") as config:
            config.write(f"[profile other]\naws_access_key_id = of-other\naws_secret_access_key = {SECRET}\n")
        for variable in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
            only(**{variable: "other", "AWS_ENDPOINT_URL": url})
            assert keys_of(store, "s3://b/k") == ("of-other", "of-other")
        only(AWS_ENDPOINT_URL_S3=url, AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_DEFAULT_REGION="eu-west-1")
        assert keys_of(store, "s3://b/k") == ("of-default", "of-default")
        assert storage.filesystem("s3://b/k")[0].region == "eu-west-1"
        only(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="of-env", AWS_SECRET_ACCESS_KEY=SECRET)
        assert keys_of(store, "s3://b/k") == ("of-env", "of-env")


def test_an_assumed_role_is_pyarrows_too(only, tmp_path):
    (tmp_path / "config").write_text(
        "[profile worker]\nrole_arn = arn:aws:iam::123456789012:role/worker\nsource_profile = base\n"
        "region = us-east-1\n"
        f"[profile base]\naws_access_key_id = of-base\naws_secret_access_key = {SECRET}\n"
    )
    with open_bucket("lends"), listen(Store, objects={"b/k": b"content"}) as (url, store):
        sts = os.environ["AWS_ENDPOINT_URL"]  # moto lends the role
        only(AWS_PROFILE="worker", AWS_ENDPOINT_URL_STS=sts, AWS_ENDPOINT_URL_S3=url)
        boto_key, arrow_key = keys_of(store, "s3://b/k")
    assert boto_key == arrow_key != "of-base"
    assert boto_key.startswith("ASIA")  # AWS's prefix of keys that end


def test_a_pods_role_is_pyarrows_too(only):
    lent = {"AccessKeyId": "of-pod", "SecretAccessKey": SECRET, "Token": "t", "Expiration": "2099-01-01T00:00:00Z"}
    page = (200, "application/json", json.dumps(lent).encode())
    with listen(Website, page=page) as (lender, _), listen(Store, objects={"b/k": b"content"}) as (url, store):
        only(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{lender}/c", AWS_ENDPOINT_URL=url, AWS_DEFAULT_REGION="us-east-1")
        assert keys_of(store, "s3://b/k") == ("of-pod", "of-pod")
        assert b"of-pod" not in pickle.dumps(fs.SubTreeFileSystem("b", storage.filesystem("s3://b/k")[0]))


def test_the_key_does_not_travel_with_the_file_system(only):
    with listen(Store, objects={"b/k": b"content"}) as (url, store):
        only(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="of-driver", AWS_SECRET_ACCESS_KEY=SECRET)
        data = pickle.dumps(storage.filesystem("s3://b/k")[0])
        assert SECRET.encode() not in data and b"of-driver" not in data
        only(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="of-worker", AWS_SECRET_ACCESS_KEY=SECRET)
        files = pickle.loads(data)
        assert isinstance(files, S3Files)
        with files.open_input_stream("b/k") as stream:
            assert stream.read() == b"content"
        assert set(store.keys_used) == {"of-worker"}


def test_a_real_store_takes_what_pyarrow_writes():
    with open_bucket("arrow") as uri:
        files, path = storage.filesystem(f"{uri}/deep/file")
        with files.open_output_stream(path) as stream:
            stream.write(b"x" * 6_000_000)  # more than one part of an upload
        assert len(storage.read_bytes(f"{uri}/deep/file")) == 6_000_000


def test_nobody_waits_long_for_a_store_that_is_gone(only):
    only(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
        AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY=SECRET,
        AWS_DEFAULT_REGION="us-east-1",
    )
    files, path = storage.filesystem("s3://b/k")
    start = time.monotonic()
    with pytest.raises(OSError):
        files.open_input_stream(path)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        storage.read_bytes("s3://b/k")
    assert time.monotonic() - start < 60
