"""The teacher's pass: packed behind P's shared keys and values it gives what whole rows give, adapter off."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raydistill.core.errors import TrainingError
from raydistill.scoring.arms import open_arm
from raydistill.scoring.logprobs import kl_per_token
from raydistill.training import model as training_model
from raydistill.training.batches import EncodedRow, micro_batches, pack
from raydistill.training.head import open_head
from raydistill.training.model import Prefix, checkpoint_activations, forward_hidden, forward_packed
from raydistill.training.steps import Setting, _sums
from raydistill.training.teacher import Memory, check_teacher, open_prefix, teacher_hidden
from tests.training.test_model import use_plain_varlen
from tests.training.workers import PREFIX, make_student, make_taught_rows

CPU = torch.device("cpu")
ROWS = [row for row in make_taught_rows() if row.teacher_tokens is not None]


@pytest.fixture
def model(model_dir):
    return make_student(model_dir)


def _whole(row: EncodedRow) -> list[int]:
    return [*([] if row.is_generic else PREFIX), *row.teacher_tokens]


def _alone(model, row: EncodedRow) -> torch.Tensor:
    """Logits of the teacher's whole row in one plain pass of the base."""
    with model.disable_adapter(), torch.no_grad():
        return model(torch.tensor([_whole(row) + row.response_tokens])).logits[0, len(_whole(row)) - 1 : -1]


def test_teachers_packed_logits_are_those_of_whole_rows_alone(model):
    prefix = open_prefix(model, PREFIX, "float32", CPU)
    assert len({row.is_generic for row in ROWS}) == 2, "rows before which P stands, and one before which it does not"
    for _ in range(2):  # the cache does not grow
        hidden = teacher_hidden(model, pack(ROWS).lesson, prefix, "float32", CPU)
        with open_head(model) as head:
            found = head.logits(hidden)
        torch.testing.assert_close(found, torch.cat([_alone(model, row) for row in ROWS]), atol=1e-3, rtol=0)
    assert prefix.cache.get_seq_length() == prefix.length == len(PREFIX)
    assert check_teacher(model, ROWS, PREFIX, prefix, "float32") < 1e-3


def test_teachers_rows_take_two_calls_where_there_is_flash_attention_and_no_mask_anywhere(model, monkeypatch):
    prefix, seen = open_prefix(model, PREFIX, "float32", CPU), []
    layers = model.get_base_model().model.layers
    hook = layers[0].self_attn.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["attention_mask"].numel()), with_kwargs=True
    )
    expected = teacher_hidden(model, pack(ROWS).lesson, prefix, "float32", CPU)
    windows = use_plain_varlen(monkeypatch)
    found = teacher_hidden(model, pack(ROWS).lesson, prefix, "float32", CPU)
    hook.remove()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert windows == [(-1, 0), (-1, -1)] * len(layers)
    assert seen == [1, 1], "neither way needs a mask"
    assert check_teacher(model, ROWS, PREFIX, prefix, "float32") < 1e-3
    assert prefix.cache.get_seq_length() == len(PREFIX)


def test_teacher_is_close_in_bfloat16(model_dir):
    model = training_model.load_student(model_dir, 4, 4, 0, "bfloat16")
    prefix = open_prefix(model, PREFIX, "bfloat16", CPU)
    assert prefix.cache.layers[0].keys.dtype == torch.bfloat16
    assert check_teacher(model, ROWS, PREFIX, prefix, "bfloat16") < 0.3


@pytest.mark.parametrize("fault", ["no prefix", "another prefix", "rows mixed"])
def test_training_is_refused_when_the_prefix_is_not_honoured(model, monkeypatch, fault):
    prefix = open_prefix(model, PREFIX, "float32", CPU)
    if fault == "no prefix":
        prefix = None
    elif fault == "another prefix":
        prefix = open_prefix(model, PREFIX[::-1], "float32", CPU)
    else:
        monkeypatch.setattr(training_model, "_row_lengths", lambda _, num_tokens: [num_tokens])
    with pytest.raises(TrainingError, match=r"does not honour P's shared prefix.*loss=cross_entropy"):
        check_teacher(model, ROWS, PREFIX, prefix, "float32")


def test_kl_of_a_pack_is_what_scoring_finds(model):
    """Scoring pads rows, unpacked, and knows nothing of chunks: an independent path to the same number."""
    rows = [row for row in ROWS if not row.is_generic]
    setting = Setting(0, 1, CPU, "float32", prefix=open_prefix(model, PREFIX, "float32", CPU))
    sums = _sums(model, pack(rows), setting)
    responses = [row.response_tokens for row in rows]
    target = open_arm(model, [_whole(row) for row in rows], adapted=False)
    student = open_arm(model, [row.prompt_tokens for row in rows])
    expected = sum(float(row.sum()) for row in kl_per_token(target, {"student": student}, responses)["student"])
    assert sums[0].item() == sums[1].item() == pytest.approx(expected, rel=1e-5)
    assert expected > 10


@pytest.mark.parametrize(("room", "passes"), [(10**9, [5, 0, 3, 0]), (0, [5, 5, 5, 5]), (9_000, [5, 3, 4, 3])])
def test_teacher_is_asked_once_for_a_row_as_long_as_there_is_room(model, monkeypatch, room, passes):
    """Two packs of five rows that share two, each twice: how many rows each pass is over."""
    asked = []

    def count(model, lesson, *rest):
        asked.append(len(lesson.rows))
        return teacher_hidden(model, lesson, *rest)

    monkeypatch.setattr("raydistill.training.teacher.teacher_hidden", count)
    prefix, memory = open_prefix(model, PREFIX, "float32", CPU), Memory(room)
    for rows, expected in zip([ROWS[:5], ROWS[:5], ROWS[3:], ROWS[3:]], passes, strict=True):
        asked.clear()
        lesson = pack(rows).lesson
        found = memory.recall(model, lesson, prefix, "float32", CPU)
        assert sum(asked) == expected and len(asked) == (expected > 0)
        torch.testing.assert_close(found, teacher_hidden(model, lesson, prefix, "float32", CPU), atol=1e-4, rtol=1e-4)
    asked.clear()
    assert memory.recall(model, pack(ROWS[:1], scored=False).lesson, prefix, "float32", CPU) is None and not asked


def test_every_worker_makes_equally_many_passes_of_the_teacher(model):
    rows = make_taught_rows()
    for num_workers in (1, 2, 3, 5):
        shares = [micro_batches(rows, rank, num_workers, 2, 2048) for rank in range(num_workers)]
        assert len({len(own) for own in shares}) == 1
        assert all(packed.lesson is not None for own in shares for packed in own)
        taught = sum(len(packed.lesson.taught_M) for own in shares for packed in own)
        assert taught == sum(len(row.response_tokens) for row in ROWS)
    bare = [dataclasses.replace(row, teacher_tokens=None) for row in rows]
    assert all(packed.lesson is None for packed in micro_batches(bare, 0, 2, 2, 2048))


def test_gradients_are_the_same_with_checkpointed_activations_and_the_teacher_still_sees_p(model):
    setting = Setting(0, 1, CPU, "float32", prefix=open_prefix(model, PREFIX, "float32", CPU))
    trained = [value for value in model.parameters() if value.requires_grad]
    expected = torch.autograd.grad(_sums(model, pack(ROWS), setting)[0], trained)
    calls = []
    layer = model.get_base_model().model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    checkpoint_activations(model)
    found = torch.autograd.grad(_sums(model, pack(ROWS), setting)[0], trained)
    assert len(calls) == 3, "the teacher's pass, the student's, and the student's once more in the backward pass"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}),
        ("gpt_neox", {"intermediate_size": 48, "hidden_dropout": 0.5, "attention_dropout": 0.5}),
    ],
)
def test_base_with_dropout_has_one_loss_before_and_after_a_teachers_pass_and_with_checkpointing(family, more, tmp_path):
    sizes = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(family, **sizes, **more, initializer_range=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    student = training_model.load_student(str(tmp_path), 2, 2, 0, "float32")
    setting = Setting(0, 1, CPU, "float32")
    untaught = [dataclasses.replace(row, teacher_tokens=None) for row in ROWS]
    before = _sums(student, pack(untaught), setting)
    teacher_hidden(student, pack(ROWS).lesson, None, "float32", CPU)
    assert torch.equal(_sums(student, pack(untaught), setting), before)
    checkpoint_activations(student)
    torch.testing.assert_close(_sums(student, pack(untaught), setting), before, rtol=1e-6, atol=0)


def test_model_itself_is_unchanged_after_our_passes(model):
    tokens = torch.tensor([[5, 9, 200, 31]])
    before = model(tokens).logits
    forward_hidden(model, pack(ROWS), "float32", CPU)
    forward_packed(model, pack(ROWS), "float32", CPU)
    check_teacher(model, ROWS, PREFIX, open_prefix(model, PREFIX, "float32", CPU), "float32")
    assert torch.equal(model(tokens).logits, before)
    assert all(value.requires_grad == ("lora_" in name) for name, value in model.named_parameters())


@pytest.mark.parametrize("settings", [{"final_logit_softcapping": 3.0}, {"logits_scaling": 4.0}])
def test_what_a_model_does_after_its_head_is_done_here_too(settings):
    from peft import LoraConfig, get_peft_model
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.5}  # fmt: skip
    kinds = (GraniteConfig, GraniteForCausalLM) if "logits_scaling" in settings else (Gemma2Config, Gemma2ForCausalLM)
    base = kinds[1](kinds[0](**sizes, **settings)).eval()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    rows = [EncodedRow("a", [5, 6, 7], [8, 9]), EncodedRow("b", [50], [60, 61, 62])]
    assert training_model.check_packing(model, rows, "float32", CPU) < 1e-4
    assert dict(settings).items() <= base.config.to_dict().items()


def test_prefix_copy_leaves_the_first_cache_as_it_is(model):
    prefix = open_prefix(model, PREFIX, "float32", CPU)
    copied = Prefix(prefix.length, prefix.copy()).cache
    key = torch.zeros_like(prefix.cache.layers[0].keys)
    copied.layers[0].update(key, key)
    assert copied.get_seq_length() == 2 * prefix.length and prefix.cache.get_seq_length() == prefix.length
