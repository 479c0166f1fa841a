"""A store that stutters: every single fault is met, in boto3's answers, in their bodies and in pyarrow's."""

import os
from collections.abc import Iterator

import pytest

from raydistill.core import s3, storage
from raydistill.core.preflight import check_storage
from tests.moto_bucket import open_bucket
from tests.stuttering_store import open_stutter


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket in moto, by an environment that names moto itself."""
    with open_bucket("stuttering") as uri:
        yield uri


@pytest.mark.parametrize("fault", ["cut before", "cut after", "cut inside"])
def test_every_first_request_fails_and_all_goes_on(bucket: str, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    place, data = f"{bucket}/{fault.replace(' ', '-')}", bytes(range(256)) * 400
    with open_stutter(port, share=1.0, faults=(fault,)) as (url, stutter):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        storage._s3.cache_clear()
        s3.session.cache_clear()
        try:
            check_storage("output_file", place)
            storage.write_bytes(f"{place}/a", data)
            assert storage.read_bytes(f"{place}/a") == data
            assert storage.list_names(place) == ["a"]
            storage.delete(f"{place}/a")
            assert not storage.exists(f"{place}/a")
        finally:
            storage._s3.cache_clear()
            s3.session.cache_clear()
    assert {"GET", "PUT", "DELETE"} <= {method for _, method in stutter.struck}
