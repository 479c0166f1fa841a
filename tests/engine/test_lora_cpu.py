"""The grouped LoRA path against plain matrix products: mixed rows, rows without an adapter, every entry point."""

import pytest
import torch

lora_cpu = pytest.importorskip("raydistill.engine.lora_cpu")
lora_products = pytest.importorskip("raydistill.engine.lora_products")

SLOTS, RANK, INPUTS, SIZES = 3, 4, 16, (8, 12)


def _wrapper(slots: list[int]):
    wrapper = lora_cpu.GroupedPunicaWrapper(max_num_batched_tokens=64, max_batches=16, device="cpu")
    wrapper._take_slots(torch.tensor(slots), torch.tensor(slots))
    return wrapper


def _weights(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(SLOTS, 1, RANK, INPUTS, generator=generator) for _ in SIZES)
    b = tuple(torch.randn(SLOTS, 1, size, RANK, generator=generator) for size in SIZES)
    return a, b


def _expected(y, x, a, b, slots):
    y = y.clone()
    for row, slot in enumerate(slots):
        if slot < 0:
            continue
        offset = 0
        for a_slice, b_slice, size in zip(a, b, SIZES, strict=True):
            y[row, offset : offset + size] += b_slice[slot, 0] @ (a_slice[slot, 0] @ x[row])
            offset += size
    return y


WAYS = [(True, 8), (True, 1), (True, 0), (False, 8), (False, 0)]


def _choose_way(monkeypatch, way):
    """Have so many rows count as few, and be multiplied by all adapters at once, or as many; and limit the layouts."""
    few, layouts = way
    monkeypatch.setattr(lora_products, "FEW_ROWS", 256 if few else 1)
    monkeypatch.setattr(lora_products, "JOINT_ROWS", 512 if few else 0)
    monkeypatch.setattr(lora_products, "LAYOUTS_A_STEP", layouts)
    monkeypatch.setattr(lora_products, "TOKENS_A_LAYOUT", 64)


@pytest.mark.parametrize("slots", [[0, 0, 0, 0], [-1, -1, -1, -1], [2, -1, 0, 2], [-1, 1, 1, 0], [2, 2, -1, -1]])
@pytest.mark.parametrize("way", WAYS)
def test_linear_equals_row_by_row_products(slots, monkeypatch, way):
    _choose_way(monkeypatch, way)
    a, b = _weights()
    x, y = torch.randn(4, INPUTS), torch.randn(4, sum(SIZES))
    expected = _expected(y, x, a, b, slots)
    _wrapper(slots).add_lora_linear(y, x, a, b, 1.0, SIZES)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_what_vllm_writes_into_its_own_tensors_later_is_used(monkeypatch, way):
    _choose_way(monkeypatch, way)
    a, b = _weights()
    slots = [1, -1, 2, 1]
    wrapper = _wrapper(slots)
    wrapper.add_lora_linear(torch.zeros(4, sum(SIZES)), torch.randn(4, INPUTS), a, b, 1.0, SIZES)
    for tensor, other in zip((*a, *b), (item for pair in _weights(9) for item in pair), strict=True):
        tensor[1] = 0
        tensor[1, 0].copy_(other[1, 0])
    x, y = torch.randn(4, INPUTS), torch.randn(4, sum(SIZES))
    expected = _expected(y, x, [item.clone() for item in a], [item.clone() for item in b], slots)
    wrapper.add_lora_linear(y, x, a, b, 1.0, SIZES)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def _count_layouts(monkeypatch):
    """Return a list that grows by one with each product that is laid out."""
    made, product = [], lora_products.Product
    monkeypatch.setattr(lora_products, "Product", lambda weight_IO: made.append(weight_IO.shape) or product(weight_IO))
    return made


@pytest.mark.parametrize("joint_rows", [0, 512])
def test_of_one_slot_that_is_written_the_others_products_stay(monkeypatch, joint_rows):
    monkeypatch.setattr(lora_products, "JOINT_ROWS", joint_rows)
    made = _count_layouts(monkeypatch)
    (a, b), slots = _weights(), [0, 1, 2]

    def add(wrapper):
        before = len(made)
        x, y = torch.randn(3, INPUTS), torch.zeros(3, sum(SIZES))
        for _ in range(2):
            wrapper._take_slots(torch.tensor(slots), torch.tensor(slots))
            y.zero_()
            wrapper.add_lora_linear(y, x, a, b, 1.0, SIZES)
        torch.testing.assert_close(y, _expected(torch.zeros_like(y), x, a, b, slots), atol=1e-4, rtol=1e-4)
        return len(made) - before

    wrapper = _wrapper(slots)
    add(wrapper)
    a[0][1].copy_(a[0][1].clone())
    assert add(wrapper) == 0, "nothing is other than before"
    a[0][1] = 3.0
    assert add(wrapper) == 2, "the joint pair, or the slot's own"


@pytest.mark.parametrize("slots", [[1, 1, 1], [1, 0, -1]])
@pytest.mark.parametrize(("least", "tokens"), [(2, 4), (1, 1.5)])
def test_a_step_lays_out_a_few_layers_and_in_the_end_all_are(monkeypatch, slots, least, tokens):
    monkeypatch.setattr(lora_products, "LAYOUTS_A_STEP", least)
    monkeypatch.setattr(lora_products, "TOKENS_A_LAYOUT", tokens)
    made, layers, wrapper = _count_layouts(monkeypatch), [_weights(seed) for seed in range(5)], _wrapper(slots)
    grown = []
    for _ in range(4):
        wrapper._take_slots(torch.tensor(slots), torch.tensor(slots))
        before = len(made)
        for a, b in layers:
            x, y = torch.randn(3, INPUTS), torch.zeros(3, sum(SIZES))
            wrapper.add_lora_linear(y, x, a, b, 1.0, SIZES)
            torch.testing.assert_close(y, _expected(torch.zeros_like(y), x, a, b, slots), atol=1e-4, rtol=1e-4)
        grown.append(len(made) - before)
    assert grown == [4, 4, 2, 0]


@pytest.mark.parametrize("slots", [[1, 1, 1], [1, 0, 1]])
def test_a_lower_rank_than_the_slots_and_slices_that_are_not_adapted(slots):
    a, b = _weights(4)
    a[0][1, 0, 2:], b[0][1, 0, :, 2:] = 0, 0
    a[1][1], b[1][1] = 0, 0
    x, y = torch.randn(3, INPUTS), torch.randn(3, sum(SIZES))
    expected = _expected(y, x, a, b, slots)
    wrapper = _wrapper(slots)
    wrapper.add_lora_linear(y, x, a, b, 1.0, SIZES)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    first_RI, second_RO = wrapper._layers[id(a[0])]._find_factors(1)
    assert len(first_RI) == len(second_RO) == 2


@pytest.mark.parametrize("slots", [[1, 1, 1], [1, 0, 1]])
def test_a_layer_that_an_adapter_leaves_alone_stays_as_it_is(slots):
    a, b = _weights(5)
    for tensor in (*a, *b):
        tensor[1] = 0
    x, y = torch.randn(3, INPUTS), torch.randn(3, sum(SIZES))
    expected = _expected(y, x, a, b, slots)
    _wrapper(slots).add_lora_linear(y, x, a, b, 1.0, SIZES)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(y[0], expected[0])


def test_without_onednn_torch_multiplies(monkeypatch):
    monkeypatch.setattr(lora_products.ops, "_supports_onednn", False)
    monkeypatch.delattr(lora_products.ops, "create_onednn_mm")
    a, b = _weights(6)
    x, y = torch.randn(4, INPUTS), torch.randn(4, sum(SIZES))
    expected = _expected(y, x, a, b, [2, -1, 0, 2])
    _wrapper([2, -1, 0, 2]).add_lora_linear(y, x, a, b, 1.0, SIZES)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("factor", [0, 1])
def test_what_is_no_number_in_one_rows_adapter_reaches_no_other_row(factor):
    a, b = _weights()
    (a, b)[factor][0][2, 0, 0, 0] = float("inf")
    x, y = torch.randn(3, INPUTS), torch.randn(3, sum(SIZES))
    _wrapper([2, 0, -1]).add_lora_linear(y, x, a, b, 1.0, SIZES)
    assert y[1:].isfinite().all() and not y[0].isfinite().all()


@pytest.mark.parametrize("way", WAYS)
def test_base_rows_are_untouched_bit_for_bit(monkeypatch, way):
    _choose_way(monkeypatch, way)
    a, b = _weights()
    x, y = torch.randn(4, INPUTS), torch.randn(4, sum(SIZES))
    before = y.clone()
    _wrapper([2, -1, 2, -1]).add_lora_linear(y, x, a, b, 1.0, SIZES)
    assert torch.equal(y[1], before[1])
    assert torch.equal(y[3], before[3])
    assert not torch.equal(y[0], before[0])


@pytest.mark.parametrize("slots", [[1, 1, 1], [2, -1, 0]])
def test_shrink_then_expand_equals_linear(slots):
    a, b = _weights(1)
    x, y = torch.randn(3, INPUTS), torch.randn(3, sum(SIZES))
    expected = _expected(y, x, a, b, slots)
    wrapper = _wrapper(slots)
    buffers = tuple(torch.full((3, RANK), 7.0) for _ in SIZES)
    wrapper.add_shrink(buffers, x, a, 1.0)
    wrapper.add_expand(y, buffers, b, SIZES)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_logits_get_their_own_rows_adapter():
    a, b = _weights(2)
    x, y = torch.randn(3, INPUTS), torch.zeros(3, SIZES[0])
    _wrapper([-1, 0, 2]).add_lora_logits(y, x, a[0], b[0], 0.5)
    assert torch.equal(y[0], torch.zeros(SIZES[0]))
    torch.testing.assert_close(y[2], 0.5 * (b[0][2, 0] @ (a[0][2, 0] @ x[2])), atol=1e-4, rtol=1e-4)


def test_linear_in_bfloat16_adds_to_a_view():
    a, b = _weights(3)
    a, b = tuple(item.bfloat16() for item in a), tuple(item.bfloat16() for item in b)
    x, y = torch.randn(2, 3, INPUTS).bfloat16(), torch.zeros(2, 3, sum(SIZES)).bfloat16()
    _wrapper([1] * 6).add_lora_linear(y, x, a, b, 1.0, SIZES)
    expected = _expected(
        torch.zeros(6, sum(SIZES)), x.view(6, -1).float(), [i.float() for i in a], [i.float() for i in b], [1] * 6
    )
    torch.testing.assert_close(y.view(6, -1).float(), expected, atol=0.3, rtol=0.05)
