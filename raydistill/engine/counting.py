"""Counts every row that an engine answers, whichever route it came by: chats and token rows meet in `generate`.

Who asks says beforehand, in the same task, as what the row counts. What says nothing (a version's probe) is not
counted.
"""

import contextlib
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raydistill.engine import metrics


@dataclass(frozen=True)
class Asked:
    """As what a row counts: see `metrics.count_row`."""

    alias: str
    version: str
    saved_tokens: int = 0


_asked: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("raydistill_asked", default=None)


def set_asked(asked: Asked) -> None:
    """Say as what the rows of this task count from now on."""
    _asked.set(asked)


@contextlib.contextmanager
def asked(asked: Asked) -> Iterator[None]:
    """Say as what the rows within count."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def count_rows_of(client: Any) -> None:
    """Let an engine client (vLLM's AsyncLLM) count the rows that it answers."""
    client.generate = _counted(client.generate)


def _counted(generate: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    async def counted(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        asked = _asked.get()
        start, first_seconds, last = time.perf_counter(), None, None
        tokens: dict[int, int] = {}
        outcomes: dict[int, str] = {}
        try:
            async for output in generate(*arguments, **options):
                last = output
                if first_seconds is None:
                    first_seconds = _first_token_seconds(output, time.perf_counter() - start)
                for completion in output.outputs:  # whole or in pieces, as the request wants them
                    tokens[completion.index] = tokens.get(completion.index, 0) + len(completion.token_ids)
                    if completion.finish_reason is not None:
                        outcomes[completion.index] = completion.finish_reason
                yield output
        except GeneratorExit:
            outcomes.setdefault(0, "aborted")
            raise
        except BaseException as error:
            outcomes.setdefault(0, "error" if isinstance(error, Exception) else "aborted")
            raise
        finally:
            if asked is not None:
                _count(asked, last, tokens, outcomes, (time.perf_counter() - start, first_seconds))

    return counted


def _first_token_seconds(output: Any, seconds: float) -> float:
    """Return what the engine measured, where the first output is not the first token: an answer asked for whole."""
    measured = getattr(output.metrics, "first_token_latency", 0.0)
    return measured if measured else seconds


def _count(
    asked: Asked,
    last: Any,
    tokens: dict[int, int],
    outcomes: dict[int, str],
    seconds: tuple[float, float | None],
) -> None:
    prompt = len(last.prompt_token_ids or []) if last is not None else 0
    cached = (last.num_cached_tokens or 0) if last is not None else 0
    for number, (index, outcome) in enumerate(sorted(outcomes.items())):
        once = {"prompt": prompt, "cached": cached, "saved": asked.saved_tokens if prompt else 0} if number == 0 else {}
        metrics.count_row(
            asked.alias,
            asked.version,
            outcome,
            {**once, "completion": tokens.get(index, 0)},
            {"request": seconds[0], "first_token": seconds[1] if number == 0 else None},
        )
