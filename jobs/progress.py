"""One line for a stage that has no rows to count: what is going on, and how long it took."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console


@contextlib.contextmanager
def show_stage(what: str) -> Iterator[None]:
    """Show a spinner while the body runs (on a terminal), and a line with its seconds at the end."""
    console = Console(stderr=True)
    start = time.monotonic()
    with console.status(what):
        yield
    console.print(f"{what}: {time.monotonic() - start:.0f} s")
