"""Which loss jobs.train takes, and what the teacher sees: by P that the dataset keeps, or by its soft labels."""

import dataclasses
import shutil

import numpy as np
import pytest

from jobs import train
from raydistill.core.answers import answer_to_row, answers_to_table
from raydistill.core.errors import ConfigError
from raydistill.core.models import model_revision
from raydistill.core.prompts import Prompt, teacher_messages
from raydistill.core.records import to_json
from raydistill.core.storage import write_bytes
from raydistill.dataset.keep import Origin, keep_table
from raydistill.dataset.layout import write_table
from raydistill.dataset.read import read_examples
from raydistill.dataset.write import keep_prompt
from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest
from raydistill.training.config import TrainConfig
from raydistill.training.rowfile import read_rows, write_rows
from tests.dataset.ledger import DRAFT, make_answer
from tests.tiny import make_tiny_model, make_tiny_tokenizer

PROMPTS = [
    Prompt("system", [{"role": "system", "content": "You are the help desk. Be brief."}]),
    Prompt(
        "messages",
        [
            {"role": "system", "content": "You are the help desk."},
            {"role": "user", "content": "My parcel is late."},
            {"role": "assistant", "content": "Shipping."},
        ],
    ),
    Prompt("template", [{"role": "user", "content": "Which team answers this: {query}? Say its name."}]),
]


def _write_dataset(folder, model_dir, prompt, top_logprobs=None, revision=None):
    """A finished dataset of 40 answers by the model, as create_data leaves it."""
    tokenizer = load_tokenizer(model_dir)
    teacher = {
        "model": "teachers/own",
        "revision": revision or model_revision(model_dir),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "template_digest": get_renderer("chat", tokenizer).template_digest,
        "renderer": "chat",
    }
    labels = {}
    if top_logprobs:
        ids = np.arange(3 * top_logprobs, dtype=np.int32).reshape(3, top_logprobs)
        labels = {"top_ids": ids, "top_logprobs": np.full(ids.shape, -3.0, np.float16)}
    answers = [make_answer(f"number {index}", **labels) for index in range(40)]
    table = answers_to_table([answer_to_row(answer) for answer in answers], top_logprobs)
    shard = write_table(str(folder), "part-0.parquet", keep_table(table, Origin("m@r", prompt.digest))[0])
    manifest = dataclasses.replace(DRAFT, finished=True, teacher=teacher, prompt_digest=prompt.digest, shards=[shard])
    write_bytes(str(folder / "manifest.json"), to_json(manifest).encode())
    keep_prompt(prompt, str(folder / "prompts"))
    return folder


def _read(dataset, student_dir, **changes):
    values = {"data_file": str(dataset), "student_model": student_dir, "raw_fraction": 0.5, **changes}
    config = TrainConfig.model_validate(values)
    return train.read_rows(config, train.check_model(config))


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.form)
def test_teacher_sees_what_it_was_asked_and_p_is_cut_off_once(prompt, model_dir, tmp_path):
    dataset = _write_dataset(tmp_path / "dataset", model_dir, prompt)
    rows = _read(dataset, model_dir)
    examples = {example.id: example for example in read_examples(str(dataset))[0]}
    renderer = get_renderer("chat", load_tokenizer(model_dir))
    assert rows.loss == "kl" and len(rows.train) == 32 and len(rows.validation) == 8
    for row in [*rows.train, *rows.validation]:
        asked = renderer.build_generation_prompt(teacher_messages(prompt, examples[row.id].messages)).to_ints()
        assert [*rows.teacher_prefix, *row.teacher_tokens] == asked
        assert row.top_ids is None and not row.is_generic and row.response_tokens == [4, 5, 2]
    assert len({row.teacher_tokens[0] for row in rows.train}) > 1, "the prefix could be longer"
    write_rows(str(tmp_path / "run"), rows.train, rows.validation)
    assert [list(part) for part in read_rows(str(tmp_path / "run"))] == [rows.train, rows.validation]


@pytest.mark.parametrize("loss", ["kl", "cross_entropy"])
def test_generic_rows_are_taught_by_the_untouched_base_when_retain_fraction_is_set(model_dir, tmp_path, loss):
    dataset = _write_dataset(tmp_path / "dataset", model_dir, PROMPTS[0])
    assert _read(dataset, model_dir, loss=loss).generic == []
    rows = _read(dataset, model_dir, loss=loss, retain_fraction=0.1)
    assert len(rows.generic) == len({row.id for row in rows.generic}) == 64
    assert all(row.is_generic and row.teacher_tokens == row.prompt_tokens for row in rows.generic)
    assert len(rows.train) == 32 and not any(row.is_generic for row in rows.train)


def _is_cross_entropy(caplog, reason, dataset, student_dir, **changes):
    """Auto says in the log why it is cross_entropy, kl is refused with the same words."""
    caplog.clear()
    with caplog.at_level("INFO"):
        rows = _read(dataset, student_dir, **changes)
    assert rows.loss == "cross_entropy" and rows.teacher_prefix == []
    assert all(row.teacher_tokens is None and row.top_ids is None for row in rows.train)
    assert f"loss=cross_entropy, because {reason}" in caplog.text
    with pytest.raises(ConfigError, match="loss: kl is not possible") as refused:
        _read(dataset, student_dir, loss="kl", **changes)
    assert reason in str(refused.value)


def test_auto_is_cross_entropy_where_no_teacher_can_be_had_and_kl_is_refused(model_dir, tmp_path, caplog):
    dataset = _write_dataset(tmp_path / "dataset", model_dir, PROMPTS[0])
    assert {row.teacher_tokens for row in _read(dataset, model_dir, loss="cross_entropy").train} == {None}
    shutil.copytree(dataset, tmp_path / "other-p")
    kept = tmp_path / "other-p" / "prompts" / f"{PROMPTS[0].digest}.json"
    kept.write_bytes(kept.read_bytes().replace(b"brief", b"rude!"))
    _is_cross_entropy(caplog, f"{kept} holds another prompt", tmp_path / "other-p", model_dir)
    kept.unlink()
    _is_cross_entropy(caplog, f"P, which create_data keeps with the dataset, is not there ({kept})", kept.parents[1],
                      model_dir)  # fmt: skip
    bare = tmp_path / "bare.jsonl"
    lines = [b'{"messages": [{"role": "user", "content": "q%d"}, {"role": "assistant", "content": "a"}]}' % i
             for i in range(40)]  # fmt: skip
    bare.write_bytes(b"\n".join(lines))
    _is_cross_entropy(caplog, f"{bare} has no manifest", bare, model_dir)


def test_soft_labels_are_the_teacher_where_another_model_with_the_same_tokenizer_answered(model_dir, tmp_path, caplog):
    labelled = _write_dataset(tmp_path / "labelled", model_dir, PROMPTS[0], top_logprobs=4, revision="another")
    rows = _read(labelled, model_dir)
    assert rows.loss == "kl" and rows.teacher_prefix == []
    for row in [*rows.train, *rows.validation]:
        assert row.teacher_tokens is None and row.top_ids.tolist() == np.arange(12).reshape(3, 4).tolist()
    write_rows(str(tmp_path / "run"), rows.train, rows.validation)
    train_rows, _ = read_rows(str(tmp_path / "run"))
    assert all(np.array_equal(a.top_ids, b.top_ids) for a, b in zip(train_rows, rows.train, strict=True))
    assert all(np.array_equal(a.top_logprobs, b.top_logprobs) for a, b in zip(train_rows, rows.train, strict=True))
    _is_cross_entropy(caplog, "kl_temperature is 2.0", labelled, model_dir, kl_temperature=2.0)
    unlabelled = _write_dataset(tmp_path / "unlabelled", model_dir, PROMPTS[0], revision="another")
    _is_cross_entropy(caplog, "teachers/own answers, another model than", unlabelled, model_dir)
    student_dir = make_tiny_model(tmp_path / "student", seed=1)
    make_tiny_tokenizer(student_dir, vocab_size=300)
    _is_cross_entropy(caplog, "the teacher, teachers/own, has another tokenizer", labelled, student_dir)
