"""How many pieces a streamed answer comes in: each token's own, until there are more than are worth sending.

A piece passes through three processes on its way to the client, and a CPU's engine shares its cores with them. So many
streams at once send several tokens in one piece; one alone sends every token as it is made. All events stay, whole
and in order; only how many travel together changes.
"""

import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

SETTING = "stream_pieces_per_second"  # its name in LLMConfig's experimental_configs


async def join_events(
    parts: AsyncGenerator[dict[str, Any] | str, None], pause_seconds: Callable[[], float], num_first: int
) -> AsyncGenerator[dict[str, Any] | str, None]:
    """Yield the parts of an answer; events that come sooner than a pause after the last piece wait for the next one.

    Args:
        parts: events as texts; or a dict, a whole answer or an error, which ends the waiting.
        pause_seconds: between two pieces, as it is now.
        num_first: events that do not wait: the first token is not to be late.
    """
    held: list[str] = []
    sent, number = 0.0, 0
    try:
        async for part in parts:
            if isinstance(part, dict):
                if held:
                    yield _take(held)
                yield part
                continue
            held.append(part)
            number += 1
            if number <= num_first or time.monotonic() - sent >= pause_seconds():
                sent = time.monotonic()
                yield _take(held)
    except Exception:  # whatever it was, it rises when what came before it is out
        if held:  # what was answered before the engine died
            yield _take(held)
        raise
    if held:
        yield _take(held)


def _take(held: list[str]) -> str:
    piece = "".join(held)
    held.clear()
    return piece
