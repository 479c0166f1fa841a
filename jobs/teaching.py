"""Where the teacher's distribution comes from in training: P in front of the student's own base, or soft labels."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raydistill.core import storage
from raydistill.core.errors import ConfigError, NotFoundError
from raydistill.core.models import model_revision
from raydistill.core.prompts import Prompt, teacher_messages
from raydistill.core.records import Example, Manifest
from raydistill.core.uris import absolute, join
from raydistill.dataset.layout import folder_of
from raydistill.training.batches import EncodedRow
from raydistill.training.config import TrainConfig
from raydistill.training.generic import PAIRS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Student:
    """The base model as training and serving must agree on it."""

    model_dir: str
    tokenizer: Any
    tokenizer_digest: str
    template_digest: str
    max_tokens: int


@dataclass(frozen=True)
class Teaching:
    """What is minimised, and the rows with what that needs.

    Attributes:
        loss: "cross_entropy" or "kl".
        rows: in their order.
        prefix: token ids that stand before the teacher_tokens of all rows.
    """

    loss: str
    rows: list[EncodedRow]
    prefix: list[int]


def add_teacher(
    config: TrainConfig,
    student: Student,
    manifest: Manifest | None,
    examples: Sequence[Example],
    rows: Sequence[EncodedRow],
) -> Teaching:
    """Return the rows with their teacher, where config.loss wants one and there is one.

    Args:
        config: loss, kl_temperature and where the dataset is.
        student: the base model.
        manifest: the dataset's; None where nothing is known of it.
        examples: the dataset's, in any order.
        rows: made of them.

    Raises:
        ConfigError: loss=kl where no teacher's distribution can be had; the message says why.
    """
    if config.loss == "cross_entropy":
        return Teaching("cross_entropy", list(rows), [])
    by_id = {example.id: example for example in examples}
    source, reason = None, f"{config.data_file} has no manifest, so its prompt and teacher are not known."
    if manifest is not None:
        has_labels = all(example.top_ids is not None for example in examples)
        source, reason = find_source(config, student, manifest.teacher, has_labels)
        if source == "base":
            prompt = _read_prompt(config.data_file, manifest)
            if isinstance(prompt, Prompt):
                return _behind_prefix(prompt, student, manifest, by_id, rows)
            source, reason = None, prompt
    if source == "labels":
        return Teaching("kl", [_with_labels(row, by_id[row.id]) for row in rows], [])
    if config.loss == "kl":
        raise ConfigError(_refuse_kl(reason))
    logger.info("loss=cross_entropy, because %s", reason)
    return Teaching("cross_entropy", list(rows), [])


def check_loss(config: TrainConfig, student: Student, teacher: Mapping[str, str], has_labels: bool) -> None:
    """Refuse loss=kl where the answers that are still to be asked for could not be used for it.

    Args:
        config: the `[train]` table.
        student: the base model.
        teacher: as a manifest describes it.
        has_labels: whether soft labels will be recorded.

    Raises:
        ConfigError: says why kl is not possible.
    """
    source, reason = find_source(config, student, teacher, has_labels)
    if config.loss == "kl" and source is None:
        raise ConfigError(_refuse_kl(reason))


def _refuse_kl(reason: str) -> str:
    return f"loss: kl is not possible: {reason} Train with loss=cross_entropy."


def find_source(
    config: TrainConfig, student: Student, teacher: Mapping[str, str], has_labels: bool
) -> tuple[Literal["base", "labels"] | None, str]:
    """Return where the teacher's distribution comes from: the student's base, soft labels, or nowhere, and why."""
    if teacher.get("tokenizer_digest") != student.tokenizer_digest:
        return None, f"the teacher, {teacher.get('model')}, has another tokenizer than {config.student_model}."
    if teacher.get("revision") == model_revision(student.model_dir):
        return "base", ""
    if not has_labels:
        return None, (
            f"{teacher.get('model')} answers, another model than {config.student_model}, and its soft labels are not "
            "recorded (create_data.top_logprobs)."
        )
    if config.kl_temperature != 1.0:
        return None, f"kl_temperature is {config.kl_temperature}, and soft labels are recorded at 1."
    return "labels", ""


def _read_prompt(data_file: str, manifest: Manifest) -> Prompt | str:
    uri = join(folder_of(absolute(data_file)), "prompts", f"{manifest.prompt_digest}.json")
    try:
        prompt = Prompt(**json.loads(storage.read_bytes(uri)))
    except NotFoundError:
        return f"P, which create_data keeps with the dataset, is not there ({uri})."
    except (ValueError, TypeError) as error:
        return f"{uri} is no prompt ({error})."
    return prompt if prompt.digest == manifest.prompt_digest else f"{uri} holds another prompt than its name says."


def _behind_prefix(
    prompt: Prompt, student: Student, manifest: Manifest, examples: dict[str, Example], rows: Sequence[EncodedRow]
) -> Teaching:
    """Return the rows with what the teacher saw, cut off behind what all of them have in common."""
    from raydistill.renderers import get_renderer
    from raydistill.scoring.arms import shared_prefix

    renderer = get_renderer(manifest.teacher.get("renderer", "chat"), student.tokenizer)
    prompts = [
        renderer.build_generation_prompt(teacher_messages(prompt, examples[row.id].messages)).to_ints() for row in rows
    ]
    prefix = shared_prefix(prompts)[: min(len(tokens) for tokens in prompts) - 1]
    taught = [
        dataclasses.replace(row, teacher_tokens=tokens[len(prefix) :])
        for row, tokens in zip(rows, prompts, strict=True)
    ]
    logger.info("loss=kl: the teacher is the student's base with P; %d tokens of P are computed once.", len(prefix))
    return Teaching("kl", taught, prefix)


def make_generic_rows(student: Student, renderer_name: str) -> list[EncodedRow]:
    """Return the rows on which the student is to stay what its base is."""
    from raydistill.renderers import get_renderer

    renderer = get_renderer(renderer_name, student.tokenizer)
    rows = []
    for index, (question, answer) in enumerate(PAIRS):
        prompt = renderer.build_generation_prompt([{"role": "user", "content": question}]).to_ints()
        response = renderer.encode_response(answer)
        rows.append(EncodedRow(f"generic-{index}", prompt, response, teacher_tokens=prompt, is_generic=True))
    return rows


def _with_labels(row: EncodedRow, example: Example) -> EncodedRow:
    return dataclasses.replace(row, top_ids=example.top_ids, top_logprobs=example.top_logprobs)
