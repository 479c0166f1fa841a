"""Rows that are missing in a ledger are asked, watched and counted, until they are there or something says stop."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray

from jobs.data_config import CreateDataConfig
from jobs.data_plan import Teacher
from jobs.watching import Asker, First, Watch, start_thread
from raydistill.core import storage
from raydistill.core.idset import unpack_ids
from raydistill.core.uris import join
from raydistill.dataset.keep import Origin
from raydistill.dataset.ledger import LedgerWriter
from raydistill.teacher.ask import Desk, ask_rows, without_bars
from raydistill.teacher.attempt import AskSettings, read_context_tokens
from raydistill.teacher.rows import find_rows, object_rows, write_requests
from raydistill.teacher.tally import start_tally

REQUESTS = "requests"
SPARE_STALL_SECONDS = 600.0  # for what Ray Data does besides asking: starting actors, reading, writing


def ask_missing(asker: Asker, done: np.ndarray, num_rows: int, first_ids: np.ndarray) -> None:
    """Ask the plan's (query, sample)s that are not done; all are in the ledger when this returns.

    Args:
        asker: the run.
        done: sorted packed ids of (query, sample)s that need not be asked.
        num_rows: how many are missing.
        first_ids: sorted packed ids of those that are looked at before the others are asked; none where that is not
            wanted.

    Raises:
        ServiceError: the work failed, or nothing was committed for a long time.
        QualityError: too few of the first answers can be used.
        BudgetError: the dataset has cost max_cost; what was answered until then is in the ledger.
    """
    plan, config = asker.plan, asker.config
    num_actors = config.count_actors(num_rows, asker.teacher.max_replicas)
    clear_requests(plan.folder)
    first, names = _write_requests(asker, done, num_rows, num_actors, first_ids)
    tally = start_tally()
    if first is None:
        ray.get(tally.say.remote("go"))
    desk = Desk(
        handle=asker.teacher.handle,
        prompt=plan.prompt,
        renderer=plan.renderer,
        settings=make_settings(config, asker.teacher, num_actors),
        requests=join(plan.folder, REQUESTS),
        ledger=LedgerWriter(plan.folder, Origin.of(plan.draft)),
        tally=tally,
        first=first.names if first else frozenset(),
    )

    def work() -> None:
        with without_bars():
            ask_rows([*sorted(desk.first), *names], desk, num_actors).materialize()

    Watch(asker, tally, first).follow(start_thread(work), _stall_seconds(config))
    clear_requests(plan.folder)


def _write_requests(
    asker: Asker, done: np.ndarray, num_rows: int, num_actors: int, first_ids: np.ndarray
) -> tuple[First | None, list[str]]:
    """Write the missing rows as request objects; return the first rows', if any is missing, and the others' names."""
    folder = join(asker.plan.folder, REQUESTS)
    is_first = set(unpack_ids(first_ids))
    held: list[dict[str, Any]] = []

    def others() -> Iterator[dict[str, Any]]:
        for row in find_rows(asker.plan.source(), asker.plan.choice, done):
            if row["id"] in is_first:
                held.append(row)
            else:
                yield row

    names = write_requests(others(), object_rows(num_rows, num_actors, asker.config.commit_rows), folder)
    if not held:
        return None, names
    first_names = write_requests(held, -(-len(held) // num_actors), folder)
    return First(first_ids, frozenset(first_names), len(held), asker.config.smoke_min_kept), names


def clear_requests(folder: str) -> None:
    """Delete a dataset's request objects, those of a run that was killed too."""
    requests = join(folder, REQUESTS)
    for name in storage.list_names(requests):
        storage.delete(join(requests, name))


def make_settings(config: CreateDataConfig, teacher: Teacher, num_actors: int) -> AskSettings:
    """Return how each of so many actors asks; waits for the teacher, which may have to come up first."""
    return AskSettings(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        stop=tuple(config.stop),
        top_logprobs=config.top_logprobs,
        all_turns=config.answer_turns == "all",
        concurrency=config.concurrency,
        num_actors=num_actors,
        max_replicas=teacher.max_replicas,
        rows_per_call=config.rows_per_call,
        commit_rows=config.commit_rows,
        max_attempts=config.max_attempts,
        timeout_seconds=config.timeout_seconds,
        context_tokens=read_context_tokens(teacher.handle, config.timeout_seconds),
    )


def _stall_seconds(config: CreateDataConfig) -> float:
    """Return how long no commit is no sign of a stall: every row of a window may need all its attempts."""
    rounds = math.ceil(config.commit_rows / max(1, config.concurrency // config.num_actors))
    return rounds * config.max_attempts * config.timeout_seconds + SPARE_STALL_SECONDS
