"""Many pass at once; who closes it waits until all are out, and who comes meanwhile waits until it is open again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turnstile:
    """Open at first. All calls from one event loop."""

    def __init__(self) -> None:
        """Begin open, with nobody inside."""
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def is_open(self) -> bool:
        """Whether one would pass at once."""
        return self._open.is_set()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Be inside, from when it is open."""
        while not self._open.is_set():  # it may be closed again before a waiting task's turn comes
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def close(self) -> None:
        """Let nobody in any more; return when nobody is inside. Cancelled meanwhile, it opens again."""
        self._open.clear()
        try:
            await self._empty.wait()
        except BaseException:  # a cancelled wait above all: else nobody would come in any more
            self._open.set()
            raise

    def open(self) -> None:
        """Let everybody in."""
        self._open.set()
