"""A proxy in front of an object store that now and then answers 503, is slow, or cuts connections, as a seed says."""

import contextlib
import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.core.loopback_store import serving

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
FAULTS = ("busy", "slow", "cut before", "cut after", "cut inside")
SLOW_SECONDS = 1.0


class Stutter(BaseHTTPRequestHandler):
    """Hands requests on; never two faults one after the other for the same method and path, so each is transient."""

    protocol_version = "HTTP/1.1"
    behind: int  # the store's port
    share: float  # of the requests that meet a fault
    faults: tuple[str, ...]
    chooser: random.Random
    lock: threading.Lock
    struck: Counter[tuple[str, str]]  # by fault and method
    last_struck: set[tuple[str, str]]  # methods and paths whose latest request met a fault

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self._choose_fault()
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        if fault == "busy":
            self._answer(503, {"Content-Type": "application/xml"}, BUSY)
            return
        if fault == "cut before":
            self._cut()
            return
        status, headers, data = self._ask(body)
        if fault == "cut after":  # it is done, and nobody hears of it
            self._cut()
        elif fault == "cut inside":
            self._answer(status, headers, data, data[: len(data) // 2])
            self._cut()
        else:
            self._answer(status, headers, data)

    def _choose_fault(self) -> str | None:
        what = (self.command, urlsplit(self.path).path)
        with self.lock:
            if what in self.last_struck or self.chooser.random() >= self.share:
                self.last_struck.discard(what)
                return None
            self.last_struck.add(what)
            fault = self.chooser.choice(self.faults)
            self.struck[fault, self.command] += 1
            return fault

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() != "expect"}
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, status: int, headers: dict[str, str], data: bytes, sent: bytes | None = None) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(key, value)
        is_head = self.command == "HEAD"
        length = headers.get("Content-Length", "0") if is_head else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if not is_head:
            self.wfile.write(data if sent is None else sent)

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def log_message(self, format, *args):
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Say nothing: a client that was killed hangs up."""


@contextlib.contextmanager
def open_stutter(
    port: int, share: float, seed: int = 0, faults: tuple[str, ...] = FAULTS
) -> Iterator[tuple[str, type[Stutter]]]:
    """Give the URL of a proxy in front of a store's port, and its handler's class, which counts what it did."""
    settings = {
        "behind": port,
        "share": share,
        "faults": faults,
        "chooser": random.Random(seed),
        "lock": threading.Lock(),
        "struck": Counter(),
        "last_struck": set(),
    }
    made = type("Stutter", (Stutter,), settings)
    with serving(_Server(("127.0.0.1", 0), made)) as url:
        yield url, made
