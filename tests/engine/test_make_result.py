"""Our record of vLLM's answers, from vLLM's own classes, without an engine."""

from types import SimpleNamespace

import numpy as np
import pytest

from raydistill.core.records import TokenRequest


def test_make_result_packs_the_most_likely_tokens_and_keeps_the_sampled_ones() -> None:
    from vllm.logprobs import append_logprobs_for_next_position, create_sample_logprobs

    from raydistill.engine.wording import make_result, sampling_params

    row = TokenRequest(tokens=[1, 2], top_logprobs=2)
    assert sampling_params(row).flat_logprobs
    assert sampling_params(row).logprobs == 2
    logprobs = create_sample_logprobs(sampling_params(row).flat_logprobs)
    # The sampled token comes first, then the two most likely; a batch with a hungrier row brings more of them.
    append_logprobs_for_next_position(logprobs, [7, 7, 8, 9], [-0.5, -0.5, -1.0, -2.0], [None] * 4, 1, 2)
    append_logprobs_for_next_position(logprobs, [5, 3, 4, 6], [-9.0, -0.25, -2.0, -3.0], [None] * 4, 40, 2)
    completion = SimpleNamespace(token_ids=[7, 5], logprobs=logprobs, finish_reason="stop")
    result = make_result(row, SimpleNamespace(outputs=[completion], num_cached_tokens=1), "m", 0.5)
    assert (result.tokens, result.logprobs, result.scores) == ([7, 5], [-0.5, -9.0], None)
    assert result.top_ids.tolist() == [[7, 8], [3, 4]]
    assert result.top_logprobs.tolist() == [[-0.5, -1.0], [-0.25, -2.0]]
    assert (result.top_ids.dtype, result.top_logprobs.dtype) == (np.int32, np.float16)


def test_a_row_asks_for_top_logprobs_or_for_scores() -> None:
    from raydistill.engine.wording import sampling_params

    with pytest.raises(ValueError, match="ask for them in two"):
        sampling_params(TokenRequest(tokens=[1], top_logprobs=2, score_token_ids=[5]))
