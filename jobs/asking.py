"""Rows that are missing in a ledger are asked, watched and counted, until they are there or something says stop."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import ray

from jobs.data_config import CreateDataConfig
from jobs.data_plan import Teacher
from jobs.watching import Asker, First, Watch, start_thread
from raydistill.core.errors import ConfigError
from raydistill.core.idset import unpack_ids
from raydistill.core.prompts import Prompt
from raydistill.core.uris import join
from raydistill.dataset.ledger import LedgerWriter
from raydistill.renderers import Renderer
from raydistill.teacher.ask import Desk, ask_rows, without_bars
from raydistill.teacher.attempt import AskSettings, read_context_tokens
from raydistill.teacher.rows import REQUESTS, clear_requests, object_rows, write_requests
from raydistill.teacher.tally import start_tally

SPARE_STALL_SECONDS = 600.0  # for what Ray Data does besides asking: starting actors, reading, writing


@dataclasses.dataclass(frozen=True)
class Work:
    """Rows that are to be asked.

    Attributes:
        prompt: P.
        renderer: the teacher's.
        rows: of core.answers.REQUEST_SCHEMA.
        num_rows: how many.
        writer: says where the answers go.
        first_ids: sorted packed ids of those that are looked at before the others are asked; none where that is not
            wanted.
    """

    prompt: Prompt
    renderer: Renderer
    rows: Iterable[dict[str, Any]]
    num_rows: int
    writer: LedgerWriter
    first_ids: np.ndarray


def ask_missing(asker: Asker, work: Work) -> None:
    """Ask rows; all are in the ledger when this returns.

    Raises:
        ConfigError: there are more or fewer rows than was said.
        ServiceError: the work failed, or nothing was committed for a long time.
        QualityError: too few of the first answers can be used.
        BudgetError: the dataset has cost max_cost; what was answered until then is in the ledger.
    """
    if overrun := asker.find_overrun():  # else each further run would ask some commits more before it sees that
        raise overrun
    config, folder = asker.config, work.writer.folder
    num_actors = config.count_actors(work.num_rows, asker.teacher.max_replicas)
    clear_requests(join(folder, REQUESTS))
    first, names = _write_requests(asker, work, num_actors)
    tally = start_tally()
    if first is None:
        ray.get(tally.say.remote("go"))
    desk = Desk(
        handle=asker.teacher.handle,
        prompt=work.prompt,
        renderer=work.renderer,
        settings=make_settings(config, asker.teacher, num_actors),
        requests=join(folder, REQUESTS),
        ledger=work.writer,
        tally=tally,
        first=first.names if first else frozenset(),
    )

    def ask() -> None:
        with without_bars():
            ask_rows([*sorted(desk.first), *names], desk, num_actors).materialize()

    Watch(asker, tally, first, [*desk.first, *names]).follow(start_thread(ask), _stall_seconds(config))
    clear_requests(join(folder, REQUESTS))


def _write_requests(asker: Asker, work: Work, num_actors: int) -> tuple[First | None, list[str]]:
    """Write the rows as request objects; return the first rows', if any is missing, and the others' names."""
    folder = join(work.writer.folder, REQUESTS)
    is_first = set(unpack_ids(work.first_ids))
    held: list[dict[str, Any]] = []
    num_others = 0

    def others() -> Iterator[dict[str, Any]]:
        nonlocal num_others
        for row in work.rows:
            if row["id"] in is_first:
                held.append(row)
            else:
                num_others += 1
                yield row

    names = write_requests(others(), object_rows(work.num_rows, num_actors, asker.config.commit_rows), folder)
    if num_others + len(held) != work.num_rows:
        raise ConfigError(
            f"queries: they were changed while they were used: {work.num_rows} rows were to be asked, and "
            f"{num_others + len(held)} were found. Run the same command again."
        )
    if not held:
        return None, names
    first_names = write_requests(held, -(-len(held) // num_actors), folder)
    rules = work.writer.rules
    return First(work.first_ids, frozenset(first_names), asker.config.smoke_min_kept, rules), names


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
