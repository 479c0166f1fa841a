"""The Ray Data stage that asks the teacher: request objects in, answers in the ledger, whatever happens."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.data.context import DataContext
from ray.serve.handle import DeploymentHandle

from raydistill.core.answers import Commit, answer_to_row
from raydistill.core.prompts import Prompt
from raydistill.core.records import Answer
from raydistill.renderers import Renderer
from raydistill.teacher.attempt import AskSettings, Attempts
from raydistill.teacher.converse import Conversation
from raydistill.teacher.places import Places
from raydistill.teacher.rows import read_requests
from raydistill.teacher.tally import State, Word

WAIT_SECONDS = 0.1
OBJECTS_IN_WORK = 2  # of an actor: the next one's rows fill the places that the last slow rows of one leave empty


class Ledger(Protocol):
    """Where answers go; see raydistill.dataset.ledger.LedgerWriter."""

    def write(self, request: str, rows: list[dict]) -> Commit:
        """Make rows part of the ledger, in one step."""
        ...

    def read_answered(self, request: str) -> set[str]:
        """Return the ids of a request object's rows that are in the ledger."""
        ...


@dataclass(frozen=True)
class Desk:
    """What an asking actor works with.

    Attributes:
        handle: of the teacher's engine.
        prompt: P.
        renderer: the teacher's.
        settings: how to ask.
        requests: the folder of the request objects.
        ledger: where the answers go.
        tally: the actor that is told of each commit; see tally.start_tally.
        first: the names of request objects that are asked before the tally says "go".
    """

    handle: DeploymentHandle
    prompt: Prompt
    renderer: Renderer
    settings: AskSettings
    requests: str
    ledger: Ledger
    tally: Any
    first: frozenset[str]


def ask_rows(names: list[str], desk: Desk, num_actors: int) -> Dataset:
    """Return the lazy Ray Dataset that asks and commits every row of the request objects: one row for each object.

    Args:
        names: of the request objects, each once.
        desk: what the actors work with.
        num_actors: actors that ask; each holds one logical CPU.
    """
    objects = ray.data.from_items([{"request": name} for name in names], override_num_blocks=len(names))
    return objects.map_batches(
        AskTeacher,
        fn_constructor_args=(desk,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=num_actors,
            max_concurrent_calls_per_actor=OBJECTS_IN_WORK,
            max_tasks_in_flight_per_actor=OBJECTS_IN_WORK,
            enable_true_multi_threading=True,
        ),
        num_cpus=1,
    )


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Let Ray Datasets that run in this context show no bars of their own."""
    context = DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = before


class AskTeacher:
    """Asks a teacher for every row of a request object and commits the answers as they come.

    Rows that are asked and not committed are never more than commit_rows: that is what a kill asks again. Where
    the object was in work before (its actor died), the rows that were committed then are left alone. They are found
    by the object's name, since nothing of an object is joined into a large one before the tally hears of its end.
    """

    def __init__(self, desk: Desk) -> None:
        """Take what to work with; see Desk."""
        settings = desk.settings
        self._desk = desk
        self._places = Places(settings.in_flight(1))
        # One pool for all objects, with a thread for every call that there may ever be at a time.
        self._threads = ThreadPoolExecutor(
            math.ceil(settings.in_flight(settings.max_replicas) / settings.rows_per_call)
        )
        self._window = max(1, settings.commit_rows // OBJECTS_IN_WORK)
        self._group = min(settings.rows_per_call, self._window)
        attempts = Attempts(desk.handle, settings)
        self._conversation = Conversation(desk.prompt, desk.renderer, attempts, settings)
        self._word: Word = "wait"
        self._locks: dict[str, threading.Lock] = {}  # by request object

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Work on request objects; several threads call it at a time."""
        names = batch["request"].to_pylist()
        yield pa.table({"request": names, "rows": [self._work(name) for name in names]})

    def _work(self, name: str) -> int:
        """Ask and commit the rows of one object; return how many.

        Where Ray lost sight of an actor that lives it sends the object again, and a second thread gets it: that one
        waits, and finds it ended.
        """
        with self._locks.setdefault(name, threading.Lock()):
            return self._work_alone(name)

    def _work_alone(self, name: str) -> int:
        desk = self._desk
        if name not in desk.first:
            self._wait_for_the_first()
        state: State = ray.get(desk.tally.begin.remote(name))
        if state == "ended":  # only the word of it was lost
            return 0
        answered = desk.ledger.read_answered(name) if state == "begun" else set()
        requests = read_requests(desk.requests, name)
        committed = self._ask(name, [row for row in requests if row["id"] not in answered])
        ray.get(desk.tally.end.remote(name))
        return committed

    def _ask(self, name: str, rows: list[dict[str, Any]]) -> int:
        """Ask rows of an object and commit the answers as they come; return how many."""
        groups = iter([rows[start : start + self._group] for start in range(0, len(rows), self._group)])
        asked: dict[Future[list[Answer]], int] = {}  # with the number of rows of each
        answers: list[Answer] = []
        num_waiting = num_done = committed = 0
        while True:
            while self._word != "stop" and num_waiting + num_done + self._group <= self._window:
                group = next(groups, None)
                if group is None:
                    break
                asked[self._threads.submit(self._answer, group)] = len(group)
                num_waiting += len(group)
            if not asked:
                return committed
            for future in wait(asked, return_when=FIRST_COMPLETED).done:
                num_rows = asked.pop(future)
                num_waiting, num_done = num_waiting - num_rows, num_done + num_rows
                answers += future.result()
            if num_done >= self._window / 2 or not asked:
                self._commit(name, answers)
                committed, num_done, answers = committed + num_done, 0, []

    def _answer(self, group: list[dict[str, Any]]) -> list[Answer]:
        with self._places.taken(len(group)):
            return self._conversation.answer(group)

    def _commit(self, name: str, answers: list[Answer]) -> None:
        rows = [answer_to_row(answer) for answer in answers]
        commit = self._desk.ledger.write(name, rows)
        self._report([commit])

    def _report(self, commits: list[Commit]) -> None:
        """Tell the job of commits, and hear the word and how many replicas there are."""
        self._word, num_replicas = ray.get(self._desk.tally.report.remote(commits))
        self._places.resize(self._desk.settings.in_flight(num_replicas))

    def _wait_for_the_first(self) -> None:
        """Return when the job has seen that the first answers can be used, or wants no more."""
        while self._word == "wait":
            time.sleep(WAIT_SECONDS)
            self._report([])
