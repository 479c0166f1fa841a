"""A bucket in a real object store: moto's server in a process of its own."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydistill.core import s3, storage
from tests.loopback import free_port, wait_for_listener


@contextlib.contextmanager
def open_bucket(name: str) -> Iterator[str]:
    """Give the URI of an empty bucket; child processes find the store by the environment."""
    port = free_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [_find_moto_server(), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in settings.items():
                patch.setenv(key, value)
            storage._s3.cache_clear()
            s3.session.cache_clear()
            wait_for_listener(port)
            storage._s3().create_bucket(Bucket=name)
            yield f"s3://{name}"
    finally:
        storage._s3.cache_clear()
        s3.session.cache_clear()
        server.terminate()
        server.wait(timeout=10)


def _find_moto_server() -> str:
    beside_python = Path(sys.executable).with_name("moto_server")
    found = str(beside_python) if beside_python.exists() else shutil.which("moto_server")
    if found is None:
        raise FileNotFoundError("moto_server is not installed. Run `make setup`, or install moto[server].")
    return found
