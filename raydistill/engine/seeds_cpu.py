"""Seeded requests on CPU: a chunk of a prompt that is not its last must not use up the request's random numbers.

vLLM samples a token after every chunk of a prompt and throws it away unless the prompt is complete; it then winds
the request's generator back by an offset, which CPU generators do not have: the whole engine dies. Here the
generator's state is kept before sampling and put back, so a seed gives the same answer however a prompt was cut.
Registered through the entry point `vllm.general_plugins`.
"""

from typing import Any

import numpy as np


def register() -> None:
    """Patch vLLM's CPU model runner; other platforms are left alone. May run more than once."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if not hasattr(CPUModelRunner, "_keeps_generators"):
        _patch(CPUModelRunner)


def _patch(runner: Any) -> None:
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync

    def _sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = [(generator, generator.get_state()) for generator in _unfinished(self).values()]
        output = sample(self, *args, **kwargs)
        for generator, state in kept:
            generator.set_state(state)
        return output

    def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch, unfinished = self.input_batch, _unfinished(self)
        generators = batch.generators
        # Hidden from the winding back that `_sample` has already done.
        batch.generators = {row: generator for row, generator in generators.items() if row not in unfinished}
        try:
            return bookkeeping(self, *args, **kwargs)
        finally:
            batch.generators = generators

    runner._sample, runner._bookkeeping_sync = _sample, _bookkeeping_sync
    runner._keeps_generators = True


def _unfinished(runner: Any) -> dict[int, Any]:
    """Return the generators of the batch's rows whose sampled token is thrown away, by row."""
    batch = runner.input_batch
    discarded = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0].tolist()
    return {row: batch.generators[row] for row in discarded if row in batch.generators}
