"""Single objects in a folder or in S3: read, atomic write, conditional write, list.

An etag is the object's version for compare-and-swap: S3's own, or the SHA-256 of a local file.
Nothing half-written is ever visible under its final name.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raydistill.core.errors import ConflictError, NotFoundError, StorageError, VerificationError
from raydistill.core.s3 import client as _s3
from raydistill.core.s3 import errors as _s3_errors
from raydistill.core.s3 import read_object
from raydistill.core.uris import is_remote

ABSENT = ""  # as `if_match`: the object must not exist yet
# What a file system without hard links answers to link(): FAT and some mounts of an object store.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def split_s3(uri: str) -> tuple[str, str]:
    """Return bucket and key of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def read(uri: str, max_bytes: int | None = None) -> tuple[bytes, str]:
    """Return an object's bytes and its etag.

    Args:
        uri: where.
        max_bytes: a larger object is refused before its content is read; None reads any.

    Raises:
        NotFoundError: there is no such object.
        VerificationError: it is larger than max_bytes.
        StorageError: the store did not answer, or refused.
    """
    if is_remote(uri):
        bucket, key = split_s3(uri)

        def get() -> Any:
            answer = _s3().get_object(Bucket=bucket, Key=key)
            try:
                _check_size(uri, answer["ContentLength"], max_bytes)
            except VerificationError:
                answer["Body"].close()
                raise
            return answer

        with _s3_errors(uri):
            data, answer = read_object(get)
            return data, answer["ETag"].strip('"')
    try:
        with Path(uri).open("rb") as file:
            _check_size(uri, os.fstat(file.fileno()).st_size, max_bytes)
            data = file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFoundError(f"{uri} does not exist.") from error
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error.strerror}.") from error
    return data, hashlib.sha256(data).hexdigest()


def _check_size(uri: str, size_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size_bytes > max_bytes:
        raise VerificationError(f"{uri} holds {size_bytes} bytes; at most {max_bytes} are read of it.")


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """Return an object's bytes; see `read`."""
    return read(uri, max_bytes)[0]


def exists(uri: str) -> bool:
    """Return whether an object exists."""
    if not is_remote(uri):
        return Path(uri).is_file()
    bucket, key = split_s3(uri)
    try:
        with _s3_errors(uri):
            _s3().head_object(Bucket=bucket, Key=key)
    except NotFoundError:
        return False
    return True


def write_bytes(uri: str, data: bytes, if_match: str | None = None) -> str:
    """Write an object in one step and return its etag.

    Args:
        uri: where.
        data: the whole object.
        if_match: None writes in any case; ABSENT only where nothing is there yet; an etag only where
            the object still has it.

    Raises:
        ConflictError: the condition does not hold.
        StorageError: the store refused.
    """
    if is_remote(uri):
        bucket, key = split_s3(uri)
        condition: dict[str, str] = {}
        if if_match == ABSENT:
            condition = {"IfNoneMatch": "*"}
        elif if_match is not None:
            condition = {"IfMatch": if_match}
        with _s3_errors(uri):
            answer = _s3().put_object(Bucket=bucket, Key=key, Body=data, **condition)
            return answer["ETag"].strip('"')
    return _write_local(Path(uri), data, if_match)


def _write_local(path: Path, data: bytes, if_match: str | None) -> str:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if if_match == ABSENT and _create(temporary, path):
            return hashlib.sha256(data).hexdigest()
        with _locked(path) if if_match is not None else contextlib.nullcontext():
            if if_match is not None:
                _check_etag(path, if_match)
            temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def _create(temporary: Path, path: Path) -> bool:
    """Give a whole file its final name unless that is taken; False where the file system has no hard links.

    One step, and one that holds between machines too, where locks on a shared mount may not.
    """
    try:
        path.hardlink_to(temporary)
    except FileExistsError as error:
        raise ConflictError(f"{path} was written by somebody else: read it and retry.") from error
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock: compare and swap are two steps on a file system."""
    with (path.parent / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_etag(path: Path, if_match: str) -> None:
    try:
        etag = read(str(path))[1]
    except NotFoundError:
        etag = ABSENT
    if etag != if_match:
        raise ConflictError(f"{path} was changed by somebody else: read it again and retry.")


def check_writable(folder: str) -> None:
    """Raise StorageError where a local folder, or the nearest parent that exists, cannot be written."""
    path = Path(folder)
    while not path.exists() and path != path.parent:
        path = path.parent
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise StorageError(f"{folder} cannot be written ({path} is no folder, or not yours). Name another place.")


def list_names(uri: str) -> list[str]:
    """Return the sorted names directly below a folder; hidden ones and an absent folder give none."""
    if is_remote(uri):
        bucket, key = split_s3(uri)
        prefix = key.rstrip("/") + "/" if key else ""
        names: set[str] = set()
        with _s3_errors(uri):
            for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
                names |= {item["Prefix"][len(prefix) :].rstrip("/") for item in page.get("CommonPrefixes", [])}
                names |= {item["Key"][len(prefix) :] for item in page.get("Contents", [])}
        return sorted(name for name in names if name and not name.startswith("."))
    folder = Path(uri)
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def list_etags(uri: str) -> dict[str, str]:
    """Return name and etag of every object directly below a folder, hidden ones left out; see `list_names`."""
    if not is_remote(uri):
        files = [name for name in list_names(uri) if (Path(uri) / name).is_file()]
        return {name: read(f"{uri.rstrip('/')}/{name}")[1] for name in files}
    bucket, key = split_s3(uri)
    prefix = key.rstrip("/") + "/" if key else ""
    etags: dict[str, str] = {}
    with _s3_errors(uri):
        for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
            for item in page.get("Contents", []):
                etags[item["Key"][len(prefix) :]] = item["ETag"].strip('"')
    return {name: etag for name, etag in sorted(etags.items()) if name and not name.startswith(".")}


def delete(uri: str) -> None:
    """Delete one object; an absent one is no error."""
    if is_remote(uri):
        bucket, key = split_s3(uri)
        with _s3_errors(uri):
            _s3().delete_object(Bucket=bucket, Key=key)
        return
    try:
        Path(uri).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{uri} cannot be deleted: {error.strerror}.") from error


def download(uri: str, target: Path) -> None:
    """Copy one object to a local file, which appears only when it is whole."""
    _write_local(target, read_bytes(uri), None)


def upload(file: Path, uri: str) -> None:
    """Copy a local file of any size to a URI, where it appears only when it is whole."""
    if is_remote(uri):
        bucket, key = split_s3(uri)
        with _s3_errors(uri):
            _s3().upload_file(str(file), bucket, key)
        return
    path = Path(uri)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, temporary)
        with temporary.open("rb+") as copy:
            os.fsync(copy.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def upload_dir(folder: Path, uri: str) -> None:
    """Copy every file directly in a local folder below a URI."""
    for file in sorted(folder.iterdir()):
        if file.is_file():
            write_bytes(f"{uri.rstrip('/')}/{file.name}", file.read_bytes())


def filesystem(uri: str) -> tuple[Any, str]:
    """Return (pyarrow file system, path) for Ray Data and Ray Train; S3 by the settings that boto3 goes by."""
    if is_remote(uri):
        from raydistill.core.s3_files import open_files

        with _s3_errors(uri):
            return open_files(), uri.removeprefix("s3://")
    from pyarrow import fs

    return fs.LocalFileSystem(), uri
