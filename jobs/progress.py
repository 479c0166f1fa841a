"""What is going on: how long a stage took, or how far asking, training or evaluating is."""

import contextlib
import datetime
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group
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
def show_evaluation() -> Iterator[Callable[[str, float], None]]:
    """Give a function that takes what is being done and the share of it that is done, and moves that one's bar."""
    console = Console(stderr=True)
    if not console.is_terminal:
        log = _SeldomLog()
        yield lambda what, share: log.add(f"evaluate: {what}, {share:.0%} done")
        return
    from rich.progress import Progress as Bar

    with Bar(console=console) as bar:
        bars: dict[str, Any] = {}

        def move(what: str, share: float) -> None:
            if what not in bars:
                bars[what] = bar.add_task(f"evaluate: {what}", total=1.0)
            bar.update(bars[what], completed=share)

        yield move


@contextlib.contextmanager
def show_asking(num_rows: int, before: Manifest) -> Iterator[Callable[[Manifest], None]]:
    """Give a function that takes the manifest of a dataset on its way and says how far this run is.

    On a terminal it moves a bar, with the figures below it; elsewhere there is a new line every LOG_SECONDS.

    Args:
        num_rows: (query, sample)s that are asked now.
        before: the manifest when that begins; all figures are what came since.
    """
    asking = _Asking(num_rows, before)
    console = Console(stderr=True)
    if not console.is_terminal:
        log = _SeldomLog()
        yield lambda manifest: log.add(asking.describe(manifest))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("asking"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    bar = Bar(*columns, console=console)
    bar_task = bar.add_task("asking", total=num_rows, left="")
    figures = Text(no_wrap=True, overflow="ellipsis")

    def move(manifest: Manifest) -> None:
        bar.update(bar_task, completed=asking.count_rows(manifest), left=asking.time_left(manifest))
        figures.plain = asking.figures(manifest)

    with Live(Group(bar, figures), console=console, refresh_per_second=2):
        yield move


class _Asking:
    """Knows when asking began and with what, so that every figure is of this run."""

    def __init__(self, num_rows: int, before: Manifest) -> None:
        self._num_rows = num_rows
        self._before = before
        self._start = time.monotonic()

    def count_rows(self, manifest: Manifest) -> int:
        """Return the rows that were answered."""
        return manifest.counts["answered"] - self._before.counts["answered"]

    def time_left(self, manifest: Manifest) -> str:
        """Return how long the rest takes at this rate; nothing where there is none yet."""
        rows = self.count_rows(manifest)
        if not rows:
            return ""
        seconds = (self._num_rows - rows) / (rows / self._seconds())
        return f"{datetime.timedelta(seconds=round(seconds))} left"

    def figures(self, manifest: Manifest) -> str:
        """Return rates, kept, dropped and cost."""
        before, seconds = self._before, self._seconds()
        tokens = manifest.tokens["completion"] - before.tokens["completion"]
        dropped = sum(manifest.counts["dropped"].values()) - sum(before.counts["dropped"].values())
        parts = [
            f"{self.count_rows(manifest) / seconds:.3g} rows/s",
            f"{tokens / seconds:.0f} tokens/s",
            f"kept {manifest.counts['kept'] - before.counts['kept']}",
            f"dropped {dropped}",
        ]
        if manifest.cost is not None:
            parts.append(f"cost {manifest.cost - (before.cost or 0.0):.4g}")
        return "  ".join(parts)

    def describe(self, manifest: Manifest) -> str:
        """Return all of it in one line."""
        parts = [f"asked {self.count_rows(manifest)}/{self._num_rows}", self.figures(manifest)]
        return "  ".join(filter(None, [*parts, self.time_left(manifest)]))

    def _seconds(self) -> float:
        return max(1e-3, time.monotonic() - self._start)
