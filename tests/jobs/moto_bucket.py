"""A bucket in a real object store: moto's server in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from raydistill.core import s3, storage


@contextlib.contextmanager
def open_bucket(name: str) -> Iterator[str]:
    """Give the URI of an empty bucket; child processes find the store by the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = dict(os.environ)
    os.environ.update(settings)
    storage._s3.cache_clear()
    s3.session.cache_clear()
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        storage._s3().create_bucket(Bucket=name)
        yield f"s3://{name}"
    finally:
        os.environ.clear()
        os.environ.update(before)
        storage._s3.cache_clear()
        s3.session.cache_clear()
        server.terminate()
        server.wait(timeout=10)
