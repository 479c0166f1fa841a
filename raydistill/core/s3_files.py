"""pyarrow's file system for S3 with boto3's settings, so that one place is reached in one way by everything."""

import os
import re
from typing import Any

from pyarrow import fs

from raydistill.core import s3

# Credentials (by boto3's names of their sources) that pyarrow finds by the same rules, and renews where they end. They
# are not given as keys: Ray Data sends its own copies of a file system about, and keys would travel with those.
FOUND_BY_PYARROW = (
    "env",
    "shared-credentials-file",
    "config-file",
    "assume-role-with-web-identity",
    "container-role",
    "iam-role",
)
_OWN_HOSTS = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com(\.cn)?")


class S3Files(fs.S3FileSystem):
    """pyarrow's, except that no key travels with it: the process that it is sent to looks up its own credentials."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make it anew elsewhere; pyarrow's own way would write the keys out."""
        return open_files, ()


def open_files() -> S3Files:
    """Return the file system for the credentials, region and endpoint that boto3 resolves in this process.

    The keys of a role that a profile assumes are those of now: a file system that is kept ends with that session
    (an hour by default, `duration_seconds` in the profile); one that is sent to a worker is made anew there.
    """
    client, session = s3.client(), s3.session()
    options: dict[str, Any] = {
        "region": client.meta.region_name,
        "connect_timeout": s3.CONNECT_SECONDS,
        "request_timeout": s3.READ_SECONDS,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=s3.ATTEMPTS),
        "tls_ca_file_path": os.environ.get("AWS_CA_BUNDLE"),
    }
    if not _OWN_HOSTS.fullmatch(client.meta.endpoint_url):
        scheme, _, address = client.meta.endpoint_url.partition("://")
        options |= {"scheme": scheme, "endpoint_override": address.rstrip("/")}
    credentials = session.get_credentials()
    if credentials is not None and not _finds(credentials.method):
        keys = credentials.get_frozen_credentials()
        options |= {"access_key": keys.access_key, "secret_key": keys.secret_key, "session_token": keys.token}
    return S3Files(**options)


def _finds(method: str) -> bool:
    # AWS_DEFAULT_PROFILE is boto3's alone: pyarrow would sign with another profile's key and say nothing.
    return method in FOUND_BY_PYARROW and not os.environ.get("AWS_DEFAULT_PROFILE")
