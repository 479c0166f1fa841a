"""Rows that are missing in a ledger are asked, watched and counted, until they are there or something says stop."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import RayError

from jobs.data_config import CreateDataConfig
from jobs.data_plan import Plan
from raydistill.core import storage
from raydistill.core.errors import BudgetError, ServiceError
from raydistill.core.records import Manifest
from raydistill.core.uris import join
from raydistill.dataset.appending import OpenLedger
from raydistill.dataset.keep import Origin
from raydistill.dataset.ledger import LedgerWriter
from raydistill.teacher.ask import Desk, ask_rows, without_bars
from raydistill.teacher.attempt import AskSettings, read_context_tokens
from raydistill.teacher.rows import Choice, find_rows, object_rows, write_requests
from raydistill.teacher.tally import start_tally

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

REQUESTS = "requests"
POLL_SECONDS = 1.0
SPARE_STALL_SECONDS = 600.0  # for what Ray Data does besides asking: starting actors, reading, writing

Watcher = Callable[[Manifest], None]  # told how far the ledger is, about once a second where it moved


@dataclasses.dataclass(frozen=True)
class Asker:
    """What is the same for all rows of one run."""

    plan: Plan
    config: CreateDataConfig
    handle: "DeploymentHandle"
    ledger: OpenLedger
    watch: Watcher


def ask_missing(asker: Asker, choice: Choice, done: np.ndarray, num_rows: int) -> None:
    """Ask those of the chosen (query, sample)s that are not done; all are in the ledger when this returns.

    Args:
        asker: the run.
        choice: of (query, sample)s.
        done: sorted packed ids of those that are in the ledger.
        num_rows: how many are missing.

    Raises:
        ServiceError: the work failed, or nothing was committed for a long time.
        BudgetError: the dataset has cost max_cost; what was answered until then is in the ledger.
    """
    plan, config = asker.plan, asker.config
    num_actors = config.count_actors(num_rows)
    folder = join(plan.folder, REQUESTS)
    rows = find_rows(plan.source(), choice, done)
    clear_requests(plan.folder)
    names = write_requests(rows, object_rows(num_rows, num_actors, config.commit_rows), folder)
    tally = start_tally()
    writer = LedgerWriter(plan.folder, Origin.of(plan.draft))
    settings = _make_settings(config, num_actors, read_context_tokens(asker.handle))
    desk = Desk(asker.handle, plan.prompt, plan.renderer, settings, folder, writer, tally)

    def work() -> None:
        with without_bars():
            ask_rows(names, desk, num_actors).materialize()

    _watch(asker, _start(work), tally, _stall_seconds(config))
    clear_requests(plan.folder)


def clear_requests(folder: str) -> None:
    """Delete a dataset's request objects, those of a run that was killed too."""
    requests = join(folder, REQUESTS)
    for name in storage.list_names(requests):
        storage.delete(join(requests, name))


def _make_settings(config: CreateDataConfig, num_actors: int, context_tokens: int) -> AskSettings:
    return AskSettings(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        stop=tuple(config.stop),
        top_logprobs=config.top_logprobs,
        all_turns=config.answer_turns == "all",
        in_flight=-(-config.concurrency // num_actors),
        rows_per_call=config.rows_per_call,
        commit_rows=config.commit_rows,
        max_attempts=config.max_attempts,
        timeout_seconds=config.timeout_seconds,
        context_tokens=context_tokens,
    )


def _start(work: Callable[[], None]) -> Future[None]:
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


def _watch(asker: Asker, future: Future[None], tally: Any, stall_seconds: float) -> None:
    """Name commits in the manifest as they come, until the work is done."""
    last_commit = time.monotonic()
    stopped = False
    while True:
        is_done = future.done()
        commits = ray.get(tally.take.remote())
        if commits:
            last_commit = time.monotonic()
            asker.ledger.add(commits)
            asker.watch(asker.ledger.manifest)
        asker.ledger.compact()
        if is_done:
            break
        if not stopped and _is_over_budget(asker):
            stopped = True
            ray.get(tally.stop.remote())
        if time.monotonic() - last_commit > stall_seconds:
            raise ServiceError(
                f"{asker.plan.folder}: no answer was committed for {stall_seconds:.0f} s. Look at the teacher's and "
                "Ray's logs (are there enough logical CPUs?), then run the same command again; it goes on where it "
                "stopped."
            )
        time.sleep(POLL_SECONDS)
    try:
        future.result()
    except RayError as error:
        raise ServiceError(f"asking the teacher failed: {error}. Run the same command again to go on.") from error
    if stopped:
        config = asker.config
        raise BudgetError(
            f"{asker.plan.folder}: its answers cost {config.cost(asker.ledger.manifest.tokens):.4g} so far, and "
            f"max_cost is {config.max_cost:g}. They are kept; raise max_cost and run the same command again to go on."
        )


def _is_over_budget(asker: Asker) -> bool:
    config = asker.config
    return config.max_cost is not None and config.cost(asker.ledger.manifest.tokens) >= config.max_cost


def _stall_seconds(config: CreateDataConfig) -> float:
    """Return how long no commit is no sign of a stall: every row of a window may need all its attempts."""
    rounds = math.ceil(config.commit_rows / max(1, config.concurrency // config.num_actors))
    return rounds * config.max_attempts * config.timeout_seconds + SPARE_STALL_SECONDS
