"""Whether a place can hold what a job is about to put there: asked before anything is started."""

import contextlib
import functools
import uuid
from collections.abc import Iterator
from typing import Any

from raydistill.core import s3, storage
from raydistill.core.errors import ConfigError, ConflictError, NotFoundError, RaydistillError, StorageError
from raydistill.core.uris import absolute, is_remote, join

# A store that answers at all does so in a second; where none does, two attempts end within ten.
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 3, 5, 2
PROBE = b"raydistill looked whether it may write here. Nobody needs this object."
WRONG_ETAG = "0" * 32


def check_storage(key: str, uri: str, read_only: bool = False) -> None:
    """Refuse a place that cannot be used as a job needs it; nothing is left behind there.

    A folder must be writable. An object store must answer, hold the bucket, let the credentials list, read, write and
    delete (through boto3 and through pyarrow), and honour If-None-Match and If-Match: without them two writers would
    overwrite each other's version or alias, and neither would notice.

    Args:
        key: the setting that names the place; the message begins with it.
        uri: a folder or s3://bucket/key.
        read_only: only look whether objects can be listed and read.

    Raises:
        ConfigError: says what is wrong, where, and what to do next.
    """
    place = absolute(uri)
    try:
        if is_remote(place):
            _check_store(place, read_only)
        elif not read_only:
            storage.check_writable(place)
    except (StorageError, NotFoundError, ConflictError) as error:  # found before the start, it is bad input
        raise ConfigError(f"{key}: {error.args[0]}") from error


@functools.cache
def check_conditional_writes(uri: str) -> None:
    """Refuse an object store that overwrites where it must not; asked once for each place in a process.

    What `check_storage` looks at too; here for a writer that cannot know whether anybody has called that.

    Raises:
        StorageError: the store ignores If-None-Match or If-Match, or does not answer.
    """
    place = absolute(uri)
    if not is_remote(place):
        return
    probe, target = _name_probe(place)
    put = functools.partial(s3.client().put_object, **target, Body=PROBE)
    with _deleted_afterwards(s3.client(), target, probe):
        with s3.errors(place):
            etag = put()["ETag"].strip('"')
        _check_conditions(put, etag, place)


def _name_probe(place: str) -> tuple[str, dict[str, str]]:
    """Return the URI of an object that nobody else writes, and how boto3 names it."""
    bucket = place.removeprefix("s3://").partition("/")[0]
    probe = join(place, f".raydistill-probe-{uuid.uuid4().hex}")
    return probe, {"Bucket": bucket, "Key": probe.removeprefix(f"s3://{bucket}/")}


@contextlib.contextmanager
def _deleted_afterwards(client: Any, target: dict[str, str], probe: str) -> Iterator[None]:
    try:
        yield
    except BaseException:  # even a PUT that failed may have been done: only its answer was lost
        with contextlib.suppress(RaydistillError), s3.errors(probe):
            client.delete_object(**target)
        raise
    with s3.errors(probe):
        client.delete_object(**target)


def _check_store(place: str, read_only: bool) -> None:
    bucket, _, key = place.removeprefix("s3://").partition("/")
    probe, target = _name_probe(place)
    with s3.errors(place):
        client = s3.make_client(CONNECT_SECONDS, READ_SECONDS, ATTEMPTS)
        listing = client.list_objects_v2(Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)
    if listing.get("Name") != bucket:  # XHTML is XML too, and boto3 finds an empty list in it
        raise StorageError(s3.describe_stranger(place, "something that is no list of objects"))
    if read_only:
        with contextlib.suppress(NotFoundError), s3.errors(place):
            client.get_object(**target)
        return
    with _deleted_afterwards(client, target, probe):
        _check_objects(client, target, place, probe)


def _check_objects(client: Any, target: dict[str, str], place: str, probe: str) -> None:
    """Write the probe, read it back in both ways, and look whether writes that must be refused are."""
    put = functools.partial(client.put_object, **target, Body=PROBE)
    try:
        with s3.errors(place):
            put(IfNoneMatch="*")
    except ConflictError:  # nobody else writes there: only the answer was lost, and boto3 asked again
        pass
    with s3.errors(place):
        _, answer = s3.read_object(lambda: client.get_object(**target), ATTEMPTS)
    try:
        content = _read_with_pyarrow(probe)
    except OSError as error:
        raise StorageError(
            f"{place}: boto3 reads there, but pyarrow, through which Ray Data and Ray Train go, does not: {error}. "
            "Set AWS_DEFAULT_REGION to the bucket's region, and look at AWS_ENDPOINT_URL."
        ) from error
    if content != PROBE:
        raise StorageError(f"{place}: the store gave back other bytes than were written. Use another store.")
    _check_conditions(put, answer["ETag"].strip('"'), place)


def _read_with_pyarrow(probe: str) -> bytes:
    """Return what pyarrow reads; like boto3, it does not ask again where the connection is cut in the body."""
    files, path = storage.filesystem(probe)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with files.open_input_stream(path) as stream:
                return stream.read()
        except OSError:
            if attempt == ATTEMPTS:
                raise
    return b""


def _check_conditions(put: Any, etag: str, place: str) -> None:
    for header, condition in (("If-None-Match", {"IfNoneMatch": "*"}), ("If-Match", {"IfMatch": WRONG_ETAG})):
        if _is_written(put, condition, place):
            raise StorageError(
                f"{place}: the store ignores {header}, so two jobs could overwrite each other's versions and aliases "
                "unnoticed. Use a store with conditional writes (AWS S3, MinIO, Ceph of late), or a folder."
            )
    if not _is_written(put, {"IfMatch": etag}, place):
        raise StorageError(
            f"{place}: the store refuses If-Match with the etag that it gave out itself, so no alias could be moved. "
            "Use a store with conditional writes, or a folder."
        )


def _is_written(put: Any, condition: dict[str, str], place: str) -> bool:
    try:
        with s3.errors(place):
            put(**condition)
    except ConflictError:
        return False
    return True
