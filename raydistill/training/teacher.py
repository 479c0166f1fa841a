"""The teacher's pass: the same base, its adapter off, with P in front, of which the shared beginning is computed once.

Axes: M positions that a lesson is about, H width of the model.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from raydistill.core.errors import TrainingError
from raydistill.training.batches import EncodedRow, Lesson, make_lesson, pack
from raydistill.training.head import open_head
from raydistill.training.model import PACKING_TOLERANCE, Prefix, forward_hidden, plain_logits

MEMORY_BYTES = 2**29  # of a worker, on its device


@contextlib.contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Run the base alone, without gradients; layers that behave differently in training are as in serving."""
    peft_model = getattr(model, "module", model)
    was_training = peft_model.training
    peft_model.eval()
    try:
        with peft_model.disable_adapter(), torch.no_grad():
            yield
    finally:
        peft_model.train(was_training)


def open_prefix(model: Any, tokens: Sequence[int], dtype: str, device: torch.device) -> Prefix | None:
    """Return the computed prefix; None where the rows share none. All workers call it together."""
    if not tokens:
        return None
    with adapter_off(model), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        cache = DynamicCache()  # whole: without a config, layers with a sliding window keep all of it too
        output = model(
            input_ids=torch.tensor([list(tokens)], device=device),
            use_cache=True,
            past_key_values=cache,
            logits_to_keep=1,
        )
    return Prefix(len(tokens), output.past_key_values)


def teacher_hidden(model: Any, lesson: Lesson, prefix: Prefix | None, dtype: str, device: torch.device) -> torch.Tensor:
    """Return the teacher's hidden states_MH; no gradients."""
    with adapter_off(model):
        return forward_hidden(model, lesson, dtype, device, prefix)


class Memory:
    """The teacher's hidden states of rows that it has seen: its weights never change, and rows come in every epoch.

    Hidden states are small: 1.2 KB a token for SmolLM2-135M in bfloat16, where logits would be 98. Where there is no
    room for more, later rows are computed each time. Not under ZeRO-3, where all workers must make the same passes.
    """

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        """Start empty."""
        self._held: dict[str, torch.Tensor] = {}
        self._free_bytes = max_bytes

    def recall(
        self, model: Any, lesson: Lesson, prefix: Prefix | None, dtype: str, device: torch.device
    ) -> torch.Tensor | None:
        """Return what `teacher_hidden` would, after a pass over new rows only; None where nothing is taught."""
        if not lesson.taught_M:
            return None
        new = [row for row in lesson.rows if row.id not in self._held]
        fresh: dict[str, torch.Tensor] = {}
        if new:
            hidden_MH = teacher_hidden(model, make_lesson(new, []), prefix, dtype, device)
            parts = hidden_MH.split([len(row.response_tokens) for row in new])
            fresh = dict(zip((row.id for row in new), parts, strict=True))
            for row, part in zip(new, parts, strict=True):
                self._hold(row.id, part)
        return torch.cat([fresh[row.id] if row.id in fresh else self._held[row.id] for row in lesson.rows])

    def _hold(self, name: str, part: torch.Tensor) -> None:
        if part.nbytes <= self._free_bytes:
            self._free_bytes -= part.nbytes
            self._held[name] = part.clone()  # a view would hold the whole pass


def check_teacher(
    model: Any, rows: Sequence[EncodedRow], prefix_tokens: Sequence[int], prefix: Prefix | None, dtype: str
) -> float:
    """Return the mean absolute difference between logits of the packed rows behind the prefix and of each row alone.

    A row alone is the whole of P, the query and the response in one plain pass, without a cache or mask of ours.

    Raises:
        TrainingError: the model does not honour the prefix, or mixes the rows.
    """
    lesson = pack(rows).lesson
    assert lesson is not None
    device = next(getattr(model, "module", model).parameters()).device
    with adapter_off(model):
        hidden_MH = forward_hidden(model, lesson, dtype, device, prefix)
        with open_head(model) as head:
            together_MV = head.logits(hidden_MH)
        alone = [
            plain_logits(
                model,
                [*([] if row.is_generic else prefix_tokens), *(row.teacher_tokens or [])],
                row.response_tokens,
                dtype,
            )
            for row in rows
            if row.teacher_tokens is not None
        ]
    difference = (together_MV - torch.cat(alone)).abs().mean().item()
    if not difference <= PACKING_TOLERANCE[dtype]:
        raise TrainingError(
            f"This model does not honour P's shared prefix: the teacher's logits differ by {difference:.3g} on "
            f"average from those of whole rows, allowed are {PACKING_TOLERANCE[dtype]}. Train with loss=cross_entropy."
        )
    return difference
