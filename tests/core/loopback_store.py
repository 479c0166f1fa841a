"""HTTP servers on the loopback address that are an object store only in part: what a job may find at its endpoint."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

XML = "application/xml"


def etag_of(data: bytes) -> str:
    """Return the etag that a store gives to an object."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Store(BaseHTTPRequestHandler):
    """One bucket in memory, without listing of keys; it ignores If-Match and If-None-Match unless told otherwise."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    keys_used: list[str]  # access key ids of the requests, in their order
    refused: frozenset[str]  # methods, and "LIST", that are answered 403 in S3's own words
    conditional = False
    knows_if_match = True

    def _answer(self, status: int, body: bytes = b"", content_type: str = XML, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        body = self._read_body()
        self.keys_used.append(self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0])
        path = unquote(urlsplit(self.path).path).strip("/")
        what = "LIST" if "list-type=2" in self.path else self.command
        if what in self.refused:
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        elif what == "LIST":
            self._answer(200, f"<ListBucketResult><Name>{path}</Name></ListBucketResult>".encode())
        elif what == "PUT" and not self._condition_holds(path):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code><Message>No</Message></Error>")
        elif what == "PUT":
            self.objects[path] = body
            self._answer(200, etag=etag_of(body))
        elif what == "DELETE":
            self.objects.pop(path, None)
            self._answer(204)
        elif path in self.objects:
            data = self.objects[path]
            self._answer(200, data, "binary/octet-stream", etag_of(data))
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>No such key</Message></Error>")

    def _condition_holds(self, path: str) -> bool:
        if not self.conditional:
            return True
        wanted = self.headers.get("If-Match")
        if wanted is not None and self.knows_if_match:
            return path in self.objects and wanted.strip('"') == etag_of(self.objects[path])
        return self.headers.get("If-None-Match") is None or path not in self.objects

    def _read_body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        parts = b""  # "SIZE;signature\r\nBYTES\r\n", the last of size 0
        while data:
            head, _, data = data.partition(b"\r\n")
            size = int(head.partition(b";")[0] or b"0", 16)
            if not size:
                break
            parts, data = parts + data[:size], data[size + 2 :]
        return parts

    do_GET = do_HEAD = do_PUT = do_DELETE = _handle

    def log_message(self, format, *args):
        """Say nothing."""


class Website(Store):
    """A server that knows nothing of S3: it answers every request with the same page."""

    page: tuple[int, str, bytes]

    def _handle(self) -> None:
        self._read_body()
        status, content_type, body = self.page
        self._answer(status, body, content_type)

    do_GET = do_HEAD = do_PUT = do_DELETE = _handle


@contextlib.contextmanager
def listen(handler: type[Store], **settings) -> Iterator[tuple[str, type[Store]]]:
    """Give the URL of a server and its handler's class, which holds what the server has seen."""
    fresh = {"objects": {}, "keys_used": [], "refused": frozenset(), **settings}
    made = type(handler.__name__, (handler,), fresh)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), made)) as url:
        yield url, made


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Give the URL of a server that answers for as long as the body runs."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
