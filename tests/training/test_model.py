"""The student on packed rows: its logits are those of each row alone, and only its adapters are trained."""

import itertools

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raydistill.core.errors import TrainingError
from raydistill.training import attention
from raydistill.training import model as training_model
from raydistill.training.attention import takes_rows
from raydistill.training.batches import EncodedRow, pack
from raydistill.training.losses import scale_to_step
from raydistill.training.model import SHAPE_MULTIPLE, check_packing, forward_packed, load_student
from raydistill.training.teacher import check_teacher, open_prefix, teacher_hidden
from tests.tiny import VOCAB_SIZE

CPU = torch.device("cpu")
ROWS = [EncodedRow("a", [5, 6, 7], [8, 9]), EncodedRow("b", [50], [60, 61, 62]), EncodedRow("c", [9] * 20, [1])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_logits_are_those_of_each_row_alone(model_dir, dtype):
    model = load_student(model_dir, 4, 4, 0, dtype)
    logits = forward_packed(model, pack(ROWS), dtype, CPU)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        expected = torch.cat(
            [
                model(torch.tensor([row.prompt_tokens + row.response_tokens])).logits[
                    0, len(row.prompt_tokens) - 1 : -1
                ]
                for row in ROWS
            ]
        ).float()
    assert logits.dtype == torch.float32 and logits.shape == (6, VOCAB_SIZE)
    torch.testing.assert_close(logits, expected, atol=1e-4 if dtype == "float32" else 0.3, rtol=0)
    assert check_packing(model, ROWS, dtype, CPU) < (1e-3 if dtype == "float32" else 0.3)


@pytest.mark.parametrize(
    ("lengths", "whole"),
    [
        ([(20, 11)], False),
        ([(20, 15), (10, 20)], False),  # both past one multiple
        ([(SHAPE_MULTIPLE // 2, SHAPE_MULTIPLE // 2)] * 2, True),  # nothing to fill up
    ],
)
def test_shapes_are_filled_up_and_the_fillers_change_and_add_no_logits(model_dir, lengths, whole):
    rows = [
        EncodedRow(f"r{row}", [5 + (7 * i + row) % 200 for i in range(prompt)], [9 + i + row for i in range(response)])
        for row, (prompt, response) in enumerate(lengths)
    ]
    packed, student, seen = pack(rows), load_student(model_dir, 4, 4, 0, "float32"), []
    assert {len(packed.tokens_T) % SHAPE_MULTIPLE == 0, len(packed.keep_N) % SHAPE_MULTIPLE == 0} == {whole}

    def spy(_, args, inputs):
        seen.append((inputs["input_ids"].shape[1], len(inputs["logits_to_keep"])))

    student.register_forward_pre_hook(spy, with_kwargs=True)
    with torch.inference_mode():
        logits = forward_packed(student, packed, "float32", CPU)
        plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        alone = [
            plain(torch.tensor([row.prompt_tokens + row.response_tokens])).logits[0, len(row.prompt_tokens) - 1 : -1]
            for row in rows
        ]
    assert len(seen) == 1 and all(length % SHAPE_MULTIPLE == 0 for length in seen[0])
    assert logits.shape == (len(packed.targets_N), VOCAB_SIZE)
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-4, rtol=0)


def test_no_mask_of_a_whole_pack_is_made_where_attention_is_told_the_rows(model_dir):
    """Of 4,000 tokens it would have 16 million entries."""
    student, seen = load_student(model_dir, 4, 4, 0, "float32"), []
    layer = student.get_base_model().model.layers[0].self_attn
    layer.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["attention_mask"].numel()), with_kwargs=True
    )
    rows = [EncodedRow(f"r{index}", [5 + index, 6, 7], [8, 9]) for index in range(8)]
    forward_packed(student, pack(rows), "float32", CPU)
    lesson = pack([EncodedRow(row.id, row.prompt_tokens, row.response_tokens, [5, 6, 7]) for row in rows]).lesson
    teacher_hidden(student, lesson, None, "float32", CPU)
    assert seen == [1, 1]


def test_packing_is_refused_when_rows_see_each_other(model_dir, monkeypatch):
    model = load_student(model_dir, 4, 4, 0, "float32")
    monkeypatch.setattr(training_model, "_row_lengths", lambda _, num_tokens: [num_tokens])
    with pytest.raises(TrainingError, match="micro_batch_size=1"):
        check_packing(model, ROWS, "float32", CPU)


def test_student_whose_weights_are_damaged_is_refused_before_training(model_dir):
    model = load_student(model_dir, 4, 4, 0, "float32")
    model.get_base_model().model.norm.weight.data[0] = float("nan")
    with pytest.raises(TrainingError, match="logits are no finite numbers before any training"):
        check_packing(model, ROWS[:1], "float32", CPU)


@pytest.mark.parametrize("family", ["falcon", "qwen3", "opt"])
def test_families_of_older_and_newer_attention_are_packed_without_a_difference(family, tmp_path):
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {
        "falcon": {},
        "qwen3": {"intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16},
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    }
    config = AutoConfig.for_model(family, **sizes, **more[family], initializer_range=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    student = load_student(str(tmp_path), 2, 2, 0, "float32")
    assert takes_rows(student.get_base_model()) == (family != "falcon")
    assert check_packing(student, ROWS, "float32", CPU) < 1e-4
    _check_prefix(student, 1e-4)


def _check_prefix(student, tolerance):
    """Rows behind a prefix, and one that is not, say what they say alone."""
    taught = [EncodedRow(row.id, row.prompt_tokens, row.response_tokens, [7, *row.prompt_tokens]) for row in ROWS]
    taught.append(EncodedRow("generic", ROWS[0].prompt_tokens, [9, 8], ROWS[0].prompt_tokens, is_generic=True))
    prefix_tokens = [index % 80 for index in range(11)]
    prefix = open_prefix(student, prefix_tokens, "float32", CPU)
    assert check_teacher(student, taught, prefix_tokens, prefix, "float32") < tolerance


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("rows", ["by row", "by one call"])
def test_sliding_windows_hold_in_packed_rows_and_behind_a_prefix(family, rows, tmp_path, monkeypatch):
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 5}
    more = {"layer_types": ["sliding_attention", "full_attention"]} if family == "gemma3_text" else {}
    config = AutoConfig.for_model(family, **sizes, **more, initializer_range=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    if rows == "by one call":
        use_plain_varlen(monkeypatch)
    student = load_student(str(tmp_path), 2, 2, 0, "float32")
    assert check_packing(student, ROWS, "float32", CPU) < 1e-4
    _check_prefix(student, 1e-4)
    tokens = torch.tensor([list(range(5, 35))])
    other = tokens.clone()
    other[0, 0] = 80
    far = (student(tokens).logits[0, -1] - student(other).logits[0, -1]).abs().max()
    assert (far == 0) == (family == "mistral"), "the window is of no effect, so this test would see nothing"


def use_plain_varlen(monkeypatch) -> list[tuple[int, int]]:
    """Let `plain_varlen` stand for the kernel; returns the window of each call, as they come."""
    windows = []

    def call(*heads, **options):
        windows.append(options["window_size"])
        return plain_varlen(*heads, **options)

    monkeypatch.setattr(attention, "has_varlen", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", call)
    return windows


def plain_varlen(query, key, value, *, cu_seq_q, cu_seq_k, max_q, max_k, return_aux, scale, window_size, enable_gqa):
    """Do what torch's varlen_attn documents, token by token; the sums [heads, T], as its kernel gives them."""
    is_causal = window_size[1] == 0
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and return_aux.lse
    assert torch.equal(cu_seq_q, cu_seq_k) if is_causal else window_size == (-1, -1)
    assert max_q == int(cu_seq_q.diff().max()) and max_k == int(cu_seq_k.diff().max())
    assert len(query) == cu_seq_q[-1] and len(key) == len(value) == cu_seq_k[-1]
    assert enable_gqa == (query.shape[1] != key.shape[1])
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output, sums = torch.zeros_like(query), torch.zeros(query.shape[1], len(query))
    rows = zip(itertools.pairwise(cu_seq_q.tolist()), itertools.pairwise(cu_seq_k.tolist()), strict=True)
    for (start, end), (first_key, end_key) in rows:
        for token in range(start, end):
            first = first_key if window_size[0] < 0 else max(first_key, token - window_size[0])
            last = token + 1 if is_causal else end_key
            scores = torch.einsum("hd,khd->hk", query[token], key[first:last]) * scale
            output[token] = torch.einsum("hk,khd->hd", scores.softmax(-1), value[first:last])
            sums[:, token] = scores.logsumexp(-1)
    return output, sums


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_student_trains_adapters_in_float32_and_freezes_the_base(model_dir, dtype):
    model = load_student(model_dir, 4, 4, 7, dtype)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert len(trained) == 28 and all("lora_" in name for name in trained)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    frozen = [value for value in model.parameters() if not value.requires_grad]
    assert {value.dtype for value in frozen} == {getattr(torch, dtype)}
    again = load_student(model_dir, 4, 4, 7, dtype)
    assert all(torch.equal(value, dict(again.named_parameters())[name]) for name, value in trained.items())


def test_step_is_a_mean_over_all_workers_although_deepspeed_divides_by_their_number():
    assert scale_to_step(torch.tensor(3.0), 6, 2).item() == pytest.approx(1.0)
