"""A dataset's examples become rows that a student is trained on, with their teacher where the loss wants one."""

import logging
from dataclasses import dataclass

from jobs.teaching import Student, add_teacher, make_generic_rows
from raydistill.core.errors import DatasetError
from raydistill.core.records import Example, Manifest, digest
from raydistill.dataset.encode import encode_examples, shorten_history, split_validation
from raydistill.dataset.read import read_examples
from raydistill.training.batches import EncodedRow
from raydistill.training.config import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """What is trained on, with what loss; `teacher_prefix` stands before the rows' teacher_tokens."""

    train: list[EncodedRow]
    validation: list[EncodedRow]
    too_long: int
    cut: int
    manifest: Manifest | None
    generic: list[EncodedRow]
    loss: str
    teacher_prefix: list[int]

    @property
    def fingerprint(self) -> str:
        """The dataset's, or a digest of the rows where nothing is known about them."""
        return self.manifest.fingerprint if self.manifest else f"rows-{digest([row.id for row in self.train])}"


def read_rows(config: TrainConfig, student: Student) -> Rows:
    """Return the dataset's rows as token ids; what happens to those that are too long says config.too_long."""
    examples, manifest = read_examples(config.data_file, student.tokenizer_digest)
    if manifest:
        _check_teacher(config, student, manifest)
    train_examples, validation_examples = split_validation(examples)
    train, long_train, cut_train = _encode(config, student, train_examples)
    validation, long_validation, cut_validation = _encode(config, student, validation_examples)
    too_long, cut = long_train + long_validation, cut_train + cut_validation
    if too_long + cut:
        text = (
            f"{config.data_file}: {too_long + cut} of {len(examples)} examples have more than {student.max_tokens} "
            f"tokens"
        )
        if config.too_long == "refuse":
            raise DatasetError(f"{text}. Set a larger max_length, or too_long=drop or cut_history.")
        logger.warning("%s: %d are left out, %d have lost their oldest turns.", text, too_long, cut)
    if not train:
        raise DatasetError(f"{config.data_file} leaves no row of at most {student.max_tokens} tokens for training.")
    teaching = add_teacher(config, student, manifest, examples, [*train, *validation])
    generic = make_generic_rows(student, config.renderer) if config.retain_fraction else []
    return Rows(
        teaching.rows[: len(train)],
        teaching.rows[len(train) :],
        too_long,
        cut,
        manifest,
        generic=generic,
        loss=teaching.loss,
        teacher_prefix=teaching.prefix,
    )


def _check_teacher(config: TrainConfig, student: Student, manifest: Manifest) -> None:
    """Refuse answers to prompts that this student would never see in that form."""
    teacher = manifest.teacher
    same_tokenizer = teacher.get("tokenizer_digest") == student.tokenizer_digest
    if not same_tokenizer and teacher.get("model") == config.student_model:
        raise DatasetError(
            f"{config.data_file}: its teacher is {config.student_model} too, but with another tokenizer: one of both "
            "was changed since. Create the dataset again."
        )
    same_renderer = teacher.get("renderer", config.renderer) == config.renderer
    is_other = same_tokenizer and same_renderer and teacher.get("template_digest") != student.template_digest
    if is_other and not config.allow_other_template:
        raise DatasetError(
            f"{config.student_model} has the tokenizer of {config.data_file}'s teacher but another chat template than "
            "the one its prompts were rendered with. Use the same template, or set allow_other_template=true."
        )


def _encode(config: TrainConfig, student: Student, examples: list[Example]) -> tuple[list[EncodedRow], int, int]:
    """Return the rows, how many were left out because they are too long, and how many lost turns instead."""
    encoded = encode_examples(examples, student.tokenizer, config.renderer, config.raw_fraction)
    rows: list[EncodedRow] = []
    num_cut = 0
    for example, tokens in zip(examples, encoded, strict=True):
        row = EncodedRow(example.id, *tokens)
        if row.num_tokens > student.max_tokens and config.too_long == "cut_history":
            row = _cut(example, config, student) or row
            num_cut += row.num_tokens <= student.max_tokens
        if row.num_tokens <= student.max_tokens:
            rows.append(row)
    return rows, len(examples) - len(rows), num_cut


def _cut(example: Example, config: TrainConfig, student: Student) -> EncodedRow | None:
    """Return the row with the longest history that fits; None where the last turn alone is too long."""
    for shorter in shorten_history(example):
        (tokens,) = encode_examples([shorter], student.tokenizer, config.renderer, raw_fraction=0.0)
        row = EncodedRow(example.id, *tokens)
        if row.num_tokens <= student.max_tokens:
            return row
    return None
