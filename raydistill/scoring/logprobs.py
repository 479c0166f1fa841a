"""Log-probabilities of completions, and KL over the full vocabulary between one arm and others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from raydistill.scoring.arms import Arm, chunk_logprobs, chunk_rows, open_arm

Row = tuple[Sequence[int], Sequence[int]]  # (prompt tokens, response tokens)


def completion_logprobs(model: Any, rows: Sequence[Row], adapted: bool = True) -> list[torch.Tensor]:
    """Return, for each row, the log-probability [len(response)] of each response token, in nats, float32.

    Args:
        model: of `load_model`.
        rows: (prompt tokens, response tokens); what the prompts share at their beginning is computed once.
        adapted: False switches the adapter off.
    """
    if not rows:
        return []
    return arm_logprobs(open_arm(model, [prompt for prompt, _ in rows], adapted), [list(row[1]) for row in rows])


def arm_logprobs(arm: Arm, responses: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return, for each row, the log-probability of each of its response's tokens; see `completion_logprobs`."""
    found = [torch.zeros(0) for _ in responses]
    for chunk in chunk_rows([arm], responses, vocab_size(arm.model)):
        for index, logprobs_TV in zip(chunk, chunk_logprobs(arm, responses, chunk), strict=True):
            picked = torch.tensor(list(responses[index]))
            found[index] = logprobs_TV.gather(1, picked[:, None])[:, 0]
    return found


@torch.inference_mode()
def kl_per_token(
    target: Arm,
    arms: Mapping[str, Arm],
    responses: Sequence[Sequence[int]],
    on_rows: Callable[[int], None] | None = None,
) -> dict[str, list[torch.Tensor]]:
    """Return KL(target || arm) at every response token, over the full vocabulary, in nats, float32.

    Args:
        target: the base model with P in its prompts, say.
        arms: name -> arm; row i of every arm is asked the same query as row i of the target.
        responses: token ids, scored under all arms; sampled from the target at temperature 1 for an unbiased mean.
        on_rows: called with the number of rows just done.

    Returns:
        name -> one tensor [len(response)] a row.
    """
    found = {name: [torch.zeros(0) for _ in responses] for name in arms}
    everyone = [target, *arms.values()]
    for chunk in chunk_rows(everyone, responses, vocab_size(target.model)):
        target_rows = chunk_logprobs(target, responses, chunk)
        for name, arm in arms.items():
            for index, p_TV, q_TV in zip(chunk, target_rows, chunk_logprobs(arm, responses, chunk), strict=True):
                found[name][index] = (p_TV.exp() * (p_TV - q_TV)).sum(dim=-1)
        if on_rows is not None:
            on_rows(len(chunk))
    return found


def vocab_size(model: Any) -> int:
    """Return how many logits the model gives at each position."""
    return int(model.get_output_embeddings().weight.shape[0])
