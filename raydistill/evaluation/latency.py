"""Seconds of a lone request and tokens per second of many at once, the three arms in turns, prefix cache warm."""

import statistics
import time
from collections.abc import Callable, Mapping

from raydistill.core.records import TokenRequest
from raydistill.evaluation.config import EvaluateConfig
from raydistill.evaluation.reference import Ask, ask_all


def measure_latency(
    config: EvaluateConfig,
    ask: Ask,
    arms: Mapping[str, tuple[str, list[list[int]]]],
    on_step: Callable[[float], None] = lambda share: None,
) -> dict[str, float]:
    """Return, for each arm, the median seconds of one request and the median tokens per second of many at once.

    Every request generates exactly latency_tokens tokens, greedily and past any stop token, so that arms differ in
    nothing but their prompt and their weights. The arms take turns, so that a busy moment of the machine hits all.

    Args:
        config: concurrency, latency_tokens and the numbers of repeats.
        ask: asks the served endpoint.
        arms: name -> (the rows' `model`, prompt token ids of each query).
        on_step: called with the share done.

    Returns:
        `<arm>_seconds` and `<arm>_tokens_per_second`.
    """
    rows = {name: [_row(config, model, tokens) for tokens in prompts] for name, (model, prompts) in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    steps = config.latency_repeats + config.throughput_repeats
    for name in arms:
        _time(ask, rows[name][:1])  # the prefix cache is warm from here on
    for turn in range(1, config.latency_repeats + 1):
        for name in arms:
            seconds[name].append(_time(ask, [rows[name][turn % len(rows[name])]])[0])
        on_step(turn / steps)
    for turn in range(1, config.throughput_repeats + 1):
        for name in arms:
            batch = [rows[name][index % len(rows[name])] for index in range(config.concurrency)]
            elapsed, num_tokens = _time(ask, batch)
            rates[name].append(num_tokens / elapsed)
        on_step((config.latency_repeats + turn) / steps)
    return {f"{name}_seconds": statistics.median(seconds[name]) for name in arms} | {
        f"{name}_tokens_per_second": statistics.median(rates[name]) for name in arms
    }


def _row(config: EvaluateConfig, model: str, tokens: list[int]) -> TokenRequest:
    return TokenRequest(tokens, model=model, max_tokens=config.latency_tokens, temperature=0.0, ignore_eos=True)


def _time(ask: Ask, rows: list[TokenRequest]) -> tuple[float, int]:
    """Return (seconds, tokens generated) of rows asked at once."""
    started = time.perf_counter()
    results = ask_all(ask, rows, "the student")
    return time.perf_counter() - started, sum(len(result.tokens) for result in results)
