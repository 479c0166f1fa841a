"""While rows are asked: commits are named and counted, and the word to go on or to stop is said."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from jobs.budget import find_overrun
from jobs.data_config import CreateDataConfig
from jobs.data_plan import Teacher
from raydistill.core.answers import Commit
from raydistill.core.errors import BudgetError, QualityError, RaydistillError, ServiceError
from raydistill.core.records import Manifest
from raydistill.dataset.appending import OpenLedger
from raydistill.dataset.finish import check_first
from raydistill.dataset.keep import Origin
from raydistill.dataset.ledger import find_unnamed
from raydistill.dataset.rules import Rules
from raydistill.teacher.attempt import count_replicas

POLL_SECONDS = 0.5
COUNT_SECONDS = 2.0  # between two looks at the number of replicas


@dataclasses.dataclass(frozen=True)
class Asker:
    """What is the same for all rows of one run.

    Attributes:
        on_progress: told how far the ledger is, every POLL_SECONDS: where nothing comes, that is worth a line too.
    """

    config: CreateDataConfig
    teacher: Teacher
    ledger: OpenLedger
    on_progress: Callable[[Manifest], None]

    def find_overrun(self) -> BudgetError | None:
        """Return the error that says that the dataset has cost max_cost; None where more may be asked."""
        return find_overrun(self.ledger.folder, self.ledger.manifest, self.config)


@dataclasses.dataclass(frozen=True)
class First:
    """The (query, sample)s that are looked at before all others are asked.

    Attributes:
        ids: sorted packed ids of all of them.
        names: of the request objects with those that are still to be asked.
        min_kept: so many of all must be kept.
        rules: by which they are.
    """

    ids: np.ndarray
    names: frozenset[str]
    min_kept: int
    rules: Rules


def start_thread(work: Callable[[], None]) -> Future[None]:
    """Do the work on a thread; a daemon, since Ray Data cannot be told to give up and must not keep the process."""
    future: Future[None] = Future()

    def target() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=target, name="ask-teacher", daemon=True).start()
    return future


class Watch:
    """Follows one run of asking actors to its end."""

    def __init__(self, asker: Asker, tally: Any, first: First | None, requests: Iterable[str]) -> None:
        """Take the run, the tally of its actors, the rows that decide whether it goes on, and all request objects."""
        self._asker = asker
        self._tally = tally
        self._first = first
        self._last_count = 0.0
        self._in_work = set(requests)  # those that have not ended
        self._reason: RaydistillError | None = None  # why it was told to stop

    def follow(self, work: Future[None], stall_seconds: float) -> None:
        """Return when the work is done and all its commits are in the manifest.

        Raises:
            ServiceError: it failed, or nothing was committed for stall_seconds.
            QualityError, BudgetError: it was told to stop.
        """
        try:
            self._follow(work, stall_seconds)
            work.result()
        except RayError as error:
            raise ServiceError(f"asking the teacher failed: {error}. Run the same command again to go on.") from error
        if self._reason is not None:
            raise self._reason

    def _follow(self, work: Future[None], stall_seconds: float) -> None:
        last_commit = time.monotonic()
        while True:
            is_done = work.done()
            commits, ended = ray.get(self._tally.take.remote())
            if commits or ended:
                last_commit = time.monotonic()
                self._take(commits, ended)
            self._asker.on_progress(self._asker.ledger.manifest)
            self._asker.ledger.compact(self._in_work)
            self._count_replicas()
            if is_done:
                return
            if time.monotonic() - last_commit > stall_seconds:
                raise ServiceError(
                    f"{self._asker.ledger.folder}: no answer was committed for {stall_seconds:.0f} s. Look at the "
                    "teacher's and Ray's logs (are there enough logical CPUs?), then run the same command again; it "
                    "goes on where it stopped."
                )
            time.sleep(POLL_SECONDS)

    def _count_replicas(self) -> None:
        """Let the actors know where the teacher has grown or shrunk."""
        if self._asker.teacher.max_replicas == 1 or time.monotonic() - self._last_count < COUNT_SECONDS:
            return
        self._last_count = time.monotonic()
        number = count_replicas(self._asker.teacher.handle)
        if number is not None:
            self._tally.count_replicas.remote(number)

    def _take(self, commits: list[Commit], ended: list[str]) -> None:
        asker, first = self._asker, self._first
        if commits:
            asker.ledger.add(commits)
        self._in_work.difference_update(ended)
        if self._reason is None and first is not None and first.names.isdisjoint(self._in_work):
            self._first = None
            self._look_at(first)
        if self._reason is None and (overrun := asker.find_overrun()):
            self._stop(overrun)

    def _look_at(self, first: First) -> None:
        ledger = self._asker.ledger
        # Nobody writes now. An actor that died between a commit and its report has left one that is not named.
        origin = Origin.of(ledger.manifest)
        ledger.add(find_unnamed(ledger.folder, ledger.manifest.answers, origin, first.rules))
        try:
            check_first(ledger.folder, ledger.manifest, first.ids, first.min_kept, first.rules)
        except QualityError as error:
            self._stop(error)
        else:
            ray.get(self._tally.say.remote("go"))

    def _stop(self, reason: RaydistillError) -> None:
        self._reason = reason
        ray.get(self._tally.say.remote("stop"))
