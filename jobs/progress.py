"""One line for what is going on: how long a stage took, or how far asking or training is."""

import contextlib
import datetime
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from raydistill.core.records import Manifest

LOG_SECONDS = 30.0
TrainingProgress = Callable[[int, int, dict[str, Any]], None]  # (steps done, steps in all, newest metrics)
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def show_stage(what: str) -> Iterator[None]:
    """Show a spinner while the body runs (on a terminal), and a line with its seconds at the end."""
    console = Console(stderr=True)
    start = time.monotonic()
    with console.status(what):
        yield
    console.print(f"{what}: {time.monotonic() - start:.0f} s")


@contextlib.contextmanager
def show_training(on_progress: TrainingProgress | None) -> Iterator[TrainingProgress]:
    """Give the caller's progress function, or one that moves a bar on the terminal.

    It is on stderr, because a command's result is what it prints; elsewhere there is a new line every LOG_SECONDS.
    """
    if on_progress is not None:
        yield on_progress
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        log = _SeldomLog()
        yield lambda done, total, line: log.add(f"step {done}/{total}: {_describe_training(line)}")
        return
    from rich.progress import Progress as Bar

    with Bar(console=console) as bar:
        bar_task = bar.add_task("training", total=None)
        yield lambda done, total, line: bar.update(
            bar_task, completed=done, total=total, description=_describe_training(line)
        )


def _describe_training(line: dict[str, Any]) -> str:
    loss, held_out = line.get("train/loss_nats"), line.get("validation/loss_nats")
    text = "training" if loss is None else f"training, {loss:.3f} nats"
    return text if held_out is None else f"{text}, held out {held_out:.3f}"


class _SeldomLog:
    """Logs a text where the last one is LOG_SECONDS ago."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def add(self, text: str) -> None:
        if time.monotonic() - self._last >= LOG_SECONDS:
            self._last = time.monotonic()
            logger.info("%s", text)


@contextlib.contextmanager
def show_asking(num_rows: int, before: Manifest) -> Iterator[Callable[[Manifest], None]]:
    """Give a function that takes the manifest of a dataset on its way and says in one line how far this run is.

    On a terminal the line stays in place; elsewhere there is a new one every LOG_SECONDS.

    Args:
        num_rows: (query, sample)s that are asked now.
        before: the manifest when that begins; all numbers of the line are what came since.
    """
    line = _AskingLine(num_rows, before)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield line.log
        return
    with Live(console=console, refresh_per_second=2, transient=False) as live:
        yield lambda manifest: live.update(Text(line.describe(manifest), no_wrap=True, overflow="ellipsis"))


class _AskingLine:
    """Knows when asking began and with what, so that every number is of this run."""

    def __init__(self, num_rows: int, before: Manifest) -> None:
        self._num_rows = num_rows
        self._before = before
        self._start = time.monotonic()
        self._log = _SeldomLog()

    def describe(self, manifest: Manifest) -> str:
        """Return rows, rates, kept, dropped, cost and the time left."""
        before, seconds = self._before, max(1e-3, time.monotonic() - self._start)
        rows = manifest.counts["answered"] - before.counts["answered"]
        tokens = manifest.tokens["completion"] - before.tokens["completion"]
        dropped = sum(manifest.counts["dropped"].values()) - sum(before.counts["dropped"].values())
        left = (self._num_rows - rows) / (rows / seconds) if rows else None
        parts = [
            f"asked {rows}/{self._num_rows}",
            f"{rows / seconds:.3g} rows/s",
            f"{tokens / seconds:.0f} tokens/s",
            f"kept {manifest.counts['kept'] - before.counts['kept']}",
            f"dropped {dropped}",
        ]
        if manifest.cost is not None:
            parts.append(f"cost {manifest.cost - (before.cost or 0.0):.4g}")
        if left is not None:
            parts.append(f"{datetime.timedelta(seconds=round(left))} left")
        return "  ".join(parts)

    def log(self, manifest: Manifest) -> None:
        """Log the line where it is time."""
        self._log.add(self.describe(manifest))
