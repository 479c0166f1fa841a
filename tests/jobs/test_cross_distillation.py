"""Teacher and student of different families: the student learns the teacher's text in tokens of its own."""

import dataclasses

import pytest

from jobs import train
from raydistill.core.errors import DatasetError
from raydistill.core.idset import pack_ids
from raydistill.dataset.finish import finish_dataset
from raydistill.dataset.write import open_dataset
from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest
from raydistill.training.config import TrainConfig
from tests.dataset.ledger import DRAFT, commit, make_answer
from tests.tiny import make_other_tiny_model, make_tiny_model

TEAMS = ["billing", "returns", "shipping ü"]


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory):
    return make_other_tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def dataset(tokenizer_dir, tmp_path):
    """A finished dataset whose answers are the teacher's tokens."""
    tokenizer = load_tokenizer(tokenizer_dir)
    teacher = {"tokenizer_digest": tokenizer_digest(tokenizer), "renderer": "chat"}
    template_digest = get_renderer("chat", tokenizer).template_digest
    draft = dataclasses.replace(DRAFT, teacher={**DRAFT.teacher, **teacher, "template_digest": template_digest})
    answers = []
    for index in range(40):
        text = TEAMS[index % 3]
        tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        answers.append(make_answer(f"number {index}", text=text, tokens=tokens))
    folder = tmp_path / "dataset"
    open_dataset(str(folder), draft)
    commit(folder, "part-a_000000", answers)
    finish_dataset(str(folder), pack_ids(answer.id for answer in answers), draft, str(folder))
    return folder


def _config(dataset, student_dir, tmp_path):
    return TrainConfig.model_validate(
        {
            "data_file": str(dataset),
            "student_model": student_dir,
            "output_dir": str(tmp_path / "models" / "desk"),
            "learning_rate": 0.01,
            "lora_rank": 4,
            "num_epochs": 8,
            "raw_fraction": 0.0,
        }
    )


def test_answers_are_encoded_anew_for_a_student_with_another_tokenizer(
    dataset, student_dir, tokenizer_dir, tmp_path, caplog
):
    config = _config(dataset, student_dir, tmp_path)
    student = train.check_model(config)
    teacher = load_tokenizer(tokenizer_dir)
    assert teacher.encode("parcel order") != student.tokenizer.encode("parcel order")
    with caplog.at_level("WARNING"):
        rows = train.read_rows(config, student)
    assert "another tokenizer" in caplog.text
    assert len(rows.train) + len(rows.validation) == 40 and rows.too_long == 0
    renderer = get_renderer("chat", student.tokenizer)
    for row in [*rows.train, *rows.validation]:
        message, ended = renderer.parse_response(row.response_tokens)
        assert ended and message["content"] in TEAMS
        assert row.response_tokens[-1] == student.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        prompt = student.tokenizer.decode(row.prompt_tokens)
        assert prompt.startswith("## user\nquestion number ") and prompt.endswith("<|endoftext|>\n## assistant\n")


def test_same_tokenizer_keeps_the_teachers_tokens(dataset, model_dir, tmp_path, caplog):
    config = _config(dataset, model_dir, tmp_path)
    with caplog.at_level("WARNING"):
        rows = train.read_rows(config, train.check_model(config))
    assert caplog.text == ""
    assert {row.response_tokens[-1] for row in rows.train} == {2}


def test_another_template_of_the_same_tokenizer_is_refused_until_it_is_allowed(dataset, tmp_path):
    other = make_tiny_model(tmp_path / "other")
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant: "))
    config = _config(dataset, other, tmp_path)
    with pytest.raises(DatasetError, match=r"another chat template.*allow_other_template=true"):
        train.read_rows(config, train.check_model(config))
    allowed = config.model_copy(update={"allow_other_template": True})
    assert len(train.read_rows(allowed, train.check_model(allowed)).train) == 32


def test_teacher_of_the_same_name_with_another_tokenizer_is_refused(dataset, student_dir, tmp_path):
    config = _config(dataset, student_dir, tmp_path)
    student = train.check_model(config)
    with pytest.raises(DatasetError, match="its teacher is m too, but with another tokenizer"):
        train.read_rows(config.model_copy(update={"student_model": "m"}), student)


def test_student_of_another_family_learns_and_is_published(cluster, dataset, student_dir, tmp_path):
    config = _config(dataset, student_dir, tmp_path)
    version = train.run(config, on_progress=lambda *_: None)
    assert version.tokenizer == tokenizer_digest(load_tokenizer(student_dir))
    assert version.base_model == student_dir and version.dataset_fingerprint == DRAFT.fingerprint and version.verifiable
    assert version.metrics["validation_loss_nats"] < 0.5 * version.metrics["validation_loss_nats_before"]
