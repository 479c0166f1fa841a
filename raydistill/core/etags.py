"""What changes when an object does, without reading it: so a poll of many objects costs few requests."""

from pathlib import Path

from raydistill.core import s3, storage
from raydistill.core.errors import NotFoundError, StorageError
from raydistill.core.uris import is_remote


def find_etag(uri: str) -> str:
    """Return what changes when an object does, without reading it; `storage.ABSENT` where there is none.

    Of a local file it is not what `read` and `write_bytes` call its etag, but an inode, a size and a time.
    """
    if not is_remote(uri):
        try:
            found = Path(uri).stat()
        except (FileNotFoundError, NotADirectoryError):
            return storage.ABSENT
        except OSError as error:
            raise StorageError(f"{uri} cannot be read: {error.strerror}.") from error
        return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
    bucket, key = storage.split_s3(uri)
    try:
        with s3.errors(uri):
            return s3.client().head_object(Bucket=bucket, Key=key)["ETag"].strip('"')
    except NotFoundError:
        return storage.ABSENT


def find_etags(uri: str, name: str) -> dict[str, str]:
    """Return every folder directly below a place with the etag of its object `name`, `storage.ABSENT` without one.

    In S3 one request for each 1,000 objects below `uri`, however many folders there are.
    """
    if not is_remote(uri):
        return {folder: find_etag(f"{uri.rstrip('/')}/{folder}/{name}") for folder in storage.list_names(uri)}
    bucket, key = storage.split_s3(uri)
    prefix = key.rstrip("/") + "/" if key else ""
    etags: dict[str, str] = {}
    with s3.errors(uri):
        for page in s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                folder, _, rest = item["Key"][len(prefix) :].partition("/")
                etags.setdefault(folder, storage.ABSENT)
                if rest == name:
                    etags[folder] = item["ETag"].strip('"')
    return etags
