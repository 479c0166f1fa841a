"""The losses of a step, the same on any number of workers: cross-entropy, KL to a teacher, or a mix of both.

Gradients of the hidden states are computed in the forward pass, one chunk of positions after the other, so neither
logits nor their gradients of a whole batch ever exist.

Axes: N positions that predict a completion token, C of them in a chunk, H width of the model, V vocabulary,
M positions of which a teacher's pass says something, R those with recorded soft labels, K tokens recorded at each.
"""

from collections.abc import Callable

import torch

from raydistill.training.head import Head

CHUNK_FLOATS = 2**22  # of logits: 16 MiB in float32, and four tensors of that size at most
# On a GPU every chunk reads the head's whole weight two or three times. With 128k tokens of vocabulary 4,096 positions
# would be 128 chunks, whose reads alone are half of a step of 1B parameters; this makes 16 of them, 128 MiB a tensor.
# Reckoned by an H100's 3.35 TB/s, not measured.
CUDA_CHUNK_FLOATS = 2**25


# From a chunk's logits_CV and its place: the sums of loss, KL and cross-entropy, and the gradient of the loss.
Score = Callable[[torch.Tensor, slice], tuple[list[torch.Tensor], torch.Tensor]]


def rows_a_chunk(vocab_size: int, device_type: str) -> int:
    """Return the positions whose logits exist at a time."""
    return max(1, (CUDA_CHUNK_FLOATS if device_type == "cuda" else CHUNK_FLOATS) // vocab_size)


class _Chunked(torch.autograd.Function):
    """The sums [3] of a Score over all positions; only the first carries a gradient."""

    @staticmethod
    def forward(ctx, hidden_NH: torch.Tensor, head: Head, score: Score) -> torch.Tensor:  # noqa: ANN001 - torch's own
        gradient_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        sums = torch.zeros(3, dtype=torch.float64, device=hidden_NH.device)
        size = rows_a_chunk(head.weight_VH.shape[0], hidden_NH.device.type)
        for first in range(0, len(hidden_NH), size):
            place = slice(first, first + size)
            logits_CV = head.logits(hidden_NH[place])
            parts, gradient_CV = score(logits_CV, place)
            sums += torch.stack([part.double() for part in parts])
            if gradient_NH is not None:
                gradient_NH[place] = head.pull_back(gradient_CV, logits_CV)
        ctx.save_for_backward(gradient_NH)
        return sums

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN001 - torch's own
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * gradients[0][0].to(gradient_NH.dtype), None, None


def score_tokens(targets_N: torch.Tensor) -> Score:
    """Return the cross-entropy of the completion tokens."""

    def score(logits_CV: torch.Tensor, place: slice) -> tuple[list[torch.Tensor], torch.Tensor]:
        logprobs_CV = logits_CV.log_softmax(-1)
        targets_C1 = targets_N[place, None]
        cross_entropy = -logprobs_CV.gather(1, targets_C1).sum()
        gradient_CV = logprobs_CV.exp_()
        gradient_CV.scatter_add_(1, targets_C1, gradient_CV.new_full(targets_C1.shape, -1.0))
        return [cross_entropy, cross_entropy.new_zeros(()), cross_entropy], gradient_CV

    return score


def score_teacher(
    targets_M: torch.Tensor, teacher_MH: torch.Tensor, head: Head, kl_weight_M: torch.Tensor, temperature: float
) -> Score:
    """Return KL to the teacher whose hidden states are given, mixed with cross-entropy.

    Args:
        targets_M: the completion tokens.
        teacher_MH: of the base with P; its head is the student's, because neither is trained.
        head: of both.
        kl_weight_M: of KL at each position.
        temperature: of both sides in KL.
    """

    def score(logits_CV: torch.Tensor, place: slice) -> tuple[list[torch.Tensor], torch.Tensor]:
        weight_C1, targets_C1 = kl_weight_M[place, None], targets_M[place, None]
        teacher_CV = (head.logits(teacher_MH[place]) / temperature).log_softmax(-1)
        student_CV = (logits_CV / temperature).log_softmax(-1)
        target_CV = teacher_CV.exp()
        kl_C = (teacher_CV.sub_(student_CV)).mul_(target_CV).sum(-1)
        logprobs_CV = student_CV if temperature == 1.0 else logits_CV.log_softmax(-1)
        cross_entropy_C = -logprobs_CV.gather(1, targets_C1)[:, 0]
        loss = (weight_C1[:, 0] * kl_C + (1 - weight_C1[:, 0]) * cross_entropy_C).sum()
        if temperature == 1.0:
            gradient_CV = student_CV.exp_().sub_(target_CV.mul_(weight_C1))
        else:
            gradient_CV = student_CV.exp_().sub_(target_CV).mul_(weight_C1 / temperature)
            gradient_CV += logprobs_CV.exp_().mul_(1 - weight_C1)
        gradient_CV.scatter_add_(1, targets_C1, weight_C1 - 1)
        return [loss, kl_C.sum(), cross_entropy_C.sum()], gradient_CV

    return score


def score_recorded(
    targets_R: torch.Tensor, top_ids_RK: torch.Tensor, top_logprobs_RK: torch.Tensor, kl_weight: float
) -> Score:
    """Return KL to a teacher of which the K most likely tokens are recorded, mixed with cross-entropy.

    All other tokens are one more outcome, the tail: its probability is what the K leave, for teacher and student.

    Args:
        targets_R: the completion tokens.
        top_ids_RK: -1 is padding.
        top_logprobs_RK: float32, at temperature 1.
        kl_weight: of KL.
    """

    def score(logits_CV: torch.Tensor, place: slice) -> tuple[list[torch.Tensor], torch.Tensor]:
        ids_CK, targets_C1 = top_ids_RK[place], targets_R[place, None]
        num_tokens = logits_CV.shape[1]
        is_there_CK = ids_CK >= 0
        teacher_CK = top_logprobs_RK[place].exp() * is_there_CK
        # Rounded to float16 they may sum up to a little more than 1.
        teacher_CK = teacher_CK / teacher_CK.sum(-1, keepdim=True).clamp(min=1.0)
        tail_C = (1 - teacher_CK.sum(-1)).clamp(min=0.0)
        logprobs_CV = logits_CV.log_softmax(-1)
        # One column more, for the padding to fall into.
        is_top_CV = torch.zeros(len(ids_CK), num_tokens + 1, dtype=torch.bool, device=ids_CK.device)
        is_top_CV.scatter_(1, torch.where(is_there_CK, ids_CK, num_tokens), True)
        student_tail_C = logprobs_CV.masked_fill(is_top_CV[:, :-1], -torch.inf).logsumexp(-1).clamp(min=-100.0)
        student_CK = logprobs_CV.gather(1, ids_CK.clamp(min=0))
        kl_C = (torch.xlogy(teacher_CK, teacher_CK) - teacher_CK * student_CK).sum(-1)
        kl_C = kl_C + torch.where(tail_C > 0, torch.xlogy(tail_C, tail_C) - tail_C * student_tail_C, 0.0)
        cross_entropy_C = -logprobs_CV.gather(1, targets_C1)[:, 0]
        loss = (kl_weight * kl_C + (1 - kl_weight) * cross_entropy_C).sum()
        # The target of a token in the tail is the teacher's tail, split as the student splits its own.
        share_C1 = torch.where(tail_C > 0, tail_C / student_tail_C.exp().clamp(min=1e-30), 0.0)[:, None]
        gradient_CV = logprobs_CV.exp_()
        tail_CV = gradient_CV.masked_fill(is_top_CV[:, :-1], 0.0).mul_(kl_weight * share_C1)
        gradient_CV.sub_(tail_CV)
        gradient_CV.scatter_add_(1, ids_CK.clamp(min=0), -kl_weight * teacher_CK)
        gradient_CV.scatter_add_(1, targets_C1, gradient_CV.new_full(targets_C1.shape, kl_weight - 1))
        return [loss, kl_C.sum(), cross_entropy_C.sum()], gradient_CV

    return score


def chunked_sums(hidden_NH: torch.Tensor, head: Head, score: Score) -> torch.Tensor:
    """Return the sums [3] of loss, KL and cross-entropy over all positions, float64; the first carries gradients."""
    return _Chunked.apply(hidden_NH, head, score)  # pyright: ignore[reportReturnType]


def scale_to_step(loss_sum: torch.Tensor, num_targets: int, num_workers: int) -> torch.Tensor:
    """Return what a worker calls backward on.

    Args:
        loss_sum: of this micro-batch.
        num_targets: completion tokens of the step over all workers and micro-batches.
        num_workers: DeepSpeed divides the sum of the workers' gradients by it; the factor undoes that.
    """
    return loss_sum * (num_workers / num_targets)
