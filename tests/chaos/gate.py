"""A gate in front of a server on the loopback address: closed, it cuts every connection and takes no new one."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class Gate:
    """Forwards connections to a port, while it is open."""

    def __init__(self, port: int) -> None:
        """Take the port of the server behind it, and open."""
        self._behind = port
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self, seconds: float) -> None:
        """Be away for so long: cut what is going on, and refuse what comes."""
        self.close()
        time.sleep(seconds)
        self.open()

    def open(self) -> None:
        """Listen again, after `close`."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in list(self._pairs):
            self._cut(pair)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                front, _ = listener.accept()
            except OSError:
                return
            try:
                back = socket.create_connection(("127.0.0.1", self._behind))
            except OSError:
                front.close()
                continue
            pair = (front, back)
            self._pairs.add(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(target=self._copy, args=(source, target, pair), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._cut(pair)

    def _cut(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def open_gate(port: int) -> Iterator[Gate]:
    """Give a gate in front of a port; it is closed at the end."""
    gate = Gate(port)
    try:
        yield gate
    finally:
        gate.close()
