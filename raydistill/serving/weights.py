"""The one set of weights of a student that merges: changed when nobody runs on it, and put back where a version fails.

Requests pass a turnstile. A change closes it, waits for those inside, and leaves it closed until the version has passed
its probe and the alias means it (`open`), or the weights of before are back (`unload`).
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from raydistill.serving.turnstile import Turnstile

logger = logging.getLogger(__name__)

Merge = Callable[[str, Path | None], Awaitable[None]]


class Weights:
    """What the engine's weights are, and who may use them now."""

    def __init__(self, base: str, merge: Merge) -> None:
        """Begin with the base model's.

        Args:
            base: the base model's name.
            merge: makes the engine's weights those of the base with an adapter added, under a name: see
                `TokenServer.merge_adapter`.
        """
        self._merge = merge
        self._turnstile = Turnstile()
        self._held: tuple[str, Path | None] = (base, None)  # name and adapter's folder
        self._before = self._held
        self.fault = ""

    @property
    def are_changing(self) -> bool:
        """Whether requests wait now."""
        return not self._turnstile.is_open

    @asynccontextmanager
    async def use(self) -> AsyncIterator[str]:
        """Wait while they change, then keep them, and give their name, for as long as the request runs."""
        async with self._turnstile.passing():
            yield self._held[0]

    def open(self) -> None:
        """Let requests in again, after `load`."""
        self._turnstile.open()

    async def load(self, name: str, folder: Path) -> None:
        """Put a version in, when the requests that run are answered; nobody is let in afterwards, see `open`.

        Raises:
            Exception: it could not be done, and the weights of before are back; where they are not, `fault` says so.
        """
        start = time.perf_counter()
        await self._turnstile.close()
        waited = time.perf_counter() - start
        self._before = self._held
        self._held = (name, folder)
        try:
            await self._merge(name, folder)
        except BaseException:  # a cancelled one too: half of two versions must not stay
            await self._put_back()
            raise
        spent = time.perf_counter() - start
        logger.info("%s is in the weights: %.1f s for the requests that ran, %.1f s in all", name, waited, spent)

    async def unload(self, name: str, adapter: Any = None) -> None:
        """Put those of before back where a version is in that failed its probe; one that was replaced is gone."""
        del adapter
        if name == self._held[0]:
            await self._put_back()

    async def _put_back(self) -> None:
        """Give the weights of before back and let requests in; where that fails, nobody is let in any more."""
        try:
            await self._merge(*self._before)
        except BaseException as error:
            self.fault = (
                f"the weights are neither {self._held[0]}'s nor {self._before[0]}'s: {type(error).__name__}: {error}"
            )
            raise
        self._held = self._before
        self._turnstile.open()
