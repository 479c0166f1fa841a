"""Chunked losses and their gradients against the plain formulas by autograd over whole logits."""

import pytest
import torch
import torch.nn.functional as F

from raydistill.training import losses
from raydistill.training.head import Head
from raydistill.training.losses import chunked_sums, rows_a_chunk, score_recorded, score_teacher, score_tokens

N, H, V, K = 23, 16, 57, 5


def _tensors(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weight, bias = 0.4 * draw(V, H), draw(V)
    return draw(N, H), draw(N, H), torch.randint(0, V, (N,), generator=generator), weight, bias


def _plain_logits(hidden, head: Head):
    logits = F.linear(hidden, head.weight_VH, head.bias_V) * head.scale
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


def _compare(hidden, head, score, expected_loss, expected_kl, expected_cross_entropy):
    """Compare sums and gradients; the factor stands for what comes after the loss."""
    (expected,) = torch.autograd.grad(0.7 * expected_loss, hidden, retain_graph=True)
    sums = chunked_sums(hidden, head, score)
    (found,) = torch.autograd.grad(0.7 * sums[0], hidden)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    plain = torch.stack([expected_loss, expected_kl, expected_cross_entropy]).double()
    torch.testing.assert_close(sums, plain, atol=1e-5, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(chunked_sums(hidden, head, score), sums.detach(), atol=0, rtol=0)


@pytest.fixture(params=[1, 7, 10**6], ids=["rows alone", "uneven chunks", "one chunk"])
def chunk_rows(request, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_FLOATS", request.param * V)


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (1.5, 4.0)])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.6, 1.0), (1.0, 2.5), (0.6, 0.5)])
@pytest.mark.usefixtures("chunk_rows")
def test_kl_to_a_teacher_is_the_plain_formula(weight, temperature, scale, cap):
    hidden, teacher, targets, projection, bias = _tensors()
    head, hidden = Head(projection, bias, scale, cap), hidden.requires_grad_()
    logits, teacher_logits = _plain_logits(hidden, head), _plain_logits(teacher, head)
    p, q = (teacher_logits / temperature).softmax(-1), (logits / temperature).softmax(-1)
    kl = (p * (p.log() - q.log())).sum()
    cross_entropy = -logits.softmax(-1).log()[range(N), targets].sum()
    weights = torch.full((N,), weight)
    score = score_teacher(targets, teacher, head, weights, temperature)
    _compare(hidden, head, score, weight * kl + (1 - weight) * cross_entropy, kl, cross_entropy)


def test_logits_are_made_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_FLOATS", 7 * V)
    lengths = []
    whole = Head.logits

    def record(head, hidden):
        lengths.append(len(hidden))
        return whole(head, hidden)

    monkeypatch.setattr(Head, "logits", record)
    hidden, teacher, targets, projection, _ = _tensors()
    head = Head(projection)
    sums = chunked_sums(hidden.requires_grad_(), head, score_tokens(targets))
    sums[0].backward()
    assert lengths == [7, 7, 7, 2]
    lengths.clear()
    chunked_sums(hidden, head, score_teacher(targets, teacher, head, torch.ones(N), 1.0))[0].backward()
    assert lengths == [7, 7, 7, 7, 7, 7, 2, 2], "the student's and the teacher's"


@pytest.mark.parametrize(
    ("vocab_size", "device", "rows"),
    [(49_152, "cpu", 85), (128_256, "cpu", 32), (128_256, "cuda", 261), (2**26, "cpu", 1)],
)
def test_chunks_hold_more_rows_on_a_gpu_where_each_reads_the_whole_head(vocab_size, device, rows):
    assert rows_a_chunk(vocab_size, device) == rows
    assert 4 * rows * vocab_size * 4 <= 2**29 or rows == 1, "four tensors in float32"


@pytest.mark.usefixtures("chunk_rows")
def test_each_position_has_its_own_weight_of_kl():
    hidden, teacher, targets, projection, _ = _tensors(1)
    head, hidden = Head(projection), hidden.requires_grad_()
    p, q = _plain_logits(teacher, head).softmax(-1), _plain_logits(hidden, head).softmax(-1)
    kl, cross_entropy = (p * (p.log() - q.log())).sum(-1), -q.log()[range(N), targets]
    weights = torch.linspace(0, 1, N)
    loss = (weights * kl + (1 - weights) * cross_entropy).sum()
    _compare(hidden, head, score_teacher(targets, teacher, head, weights, 1.0), loss, kl.sum(), cross_entropy.sum())


@pytest.mark.usefixtures("chunk_rows")
def test_cross_entropy_is_the_plain_formula():
    hidden, _, targets, projection, bias = _tensors(2)
    head, hidden = Head(projection, bias), hidden.requires_grad_()
    cross_entropy = -_plain_logits(hidden, head).softmax(-1).log()[range(N), targets].sum()
    _compare(hidden, head, score_tokens(targets), cross_entropy, torch.tensor(0.0), cross_entropy)


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.usefixtures("chunk_rows")
def test_recorded_top_k_is_kl_over_k_outcomes_and_the_tail(weight):
    hidden, teacher, targets, projection, _ = _tensors(3)
    head, hidden = Head(projection), hidden.requires_grad_()
    full = _plain_logits(teacher, head).log_softmax(-1)
    top = full.topk(K)
    ids, logprobs = top.indices.clone(), top.values.clone()
    ids[3, 2:], logprobs[3, 2:] = -1, -65504.0  # padding: two tokens are known there
    ids[4, 1:], logprobs[4, 1:], logprobs[4, 0] = -1, -65504.0, 0.0  # nothing is left for the tail
    q = _plain_logits(hidden, head).softmax(-1)
    kl = []
    for place in range(N):  # by hand: a distribution over the known tokens and one outcome for all the others
        known = [(int(i), float(value)) for i, value in zip(ids[place], logprobs[place], strict=True) if i >= 0]
        others = [token for token in range(V) if token not in [i for i, _ in known]]
        p = torch.tensor([*(torch.tensor(value).exp() for _, value in known)])
        tail = 1 - p.sum()
        terms = p * (p.log() - q[place, [i for i, _ in known]].log())
        rest = tail * (tail.log() - q[place, others].sum().log()) if tail > 1e-6 else torch.tensor(0.0)
        kl.append(terms.sum() + rest)
    cross_entropy = -q.log()[range(N), targets].sum()
    total = torch.stack(kl).sum()
    score = score_recorded(targets, ids, logprobs, weight)
    _compare(hidden, head, score, weight * total + (1 - weight) * cross_entropy, total, cross_entropy)


def test_recorded_tokens_of_the_whole_vocabulary_are_the_full_kl():
    hidden, teacher, targets, projection, _ = _tensors(4)
    head = Head(projection)
    top = _plain_logits(teacher, head).log_softmax(-1).topk(V - 1)
    full = chunked_sums(hidden, head, score_teacher(targets, teacher, head, torch.ones(N), 1.0))
    found = chunked_sums(hidden, head, score_recorded(targets, top.indices, top.values, 1.0))
    torch.testing.assert_close(found, full, atol=1e-4, rtol=1e-5)
    few = _plain_logits(teacher, head).log_softmax(-1).topk(2)
    fewer = chunked_sums(hidden, head, score_recorded(targets, few.indices, few.values, 1.0))
    assert 0 < fewer[1] < full[1], "the tail as one outcome tells two distributions apart less well, never better"
