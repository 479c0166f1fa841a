"""From a dataset's folder or a `.jsonl` file to Examples: by the manifest only, never by a listing."""

import collections
import dataclasses
import json
import logging
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import DatasetError, NotFoundError
from raydistill.core.patience import patiently
from raydistill.core.prompts import message_faults
from raydistill.core.records import Example, Manifest, Message, digest, manifest_from_json
from raydistill.core.uris import absolute, join
from raydistill.dataset.export import to_jsonl
from raydistill.dataset.layout import MANIFEST, examples_from_table, folder_of, read_table

logger = logging.getLogger(__name__)


def read_manifest(uri: str) -> Manifest:
    """Return the manifest of a dataset's folder, or of the folder beside a `.jsonl`.

    Raises:
        NotFoundError: there is none.
        DatasetError: it is not a manifest.
    """
    return read_manifest_and_etag(folder_of(absolute(uri)))[0]


def read_manifest_and_etag(folder: str) -> tuple[Manifest, str]:
    """Return a folder's manifest and its etag, for a conditional write."""
    uri = join(folder, MANIFEST)
    try:
        data, etag = patiently(lambda: storage.read(uri))
    except NotFoundError as error:
        raise NotFoundError(
            f"{folder} is no dataset: it has no {MANIFEST}. Create it with jobs.create_data."
        ) from error
    try:
        return manifest_from_json(data), etag
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{uri} is no manifest ({error}). Run create_data again into another folder.") from error


def read_examples(data_file: str, tokenizer_digest: str | None = None) -> tuple[list[Example], Manifest | None]:
    """Return a dataset's examples and its manifest (None for a bare `.jsonl`, of which nothing is known).

    Args:
        data_file: a dataset's folder, or a `.jsonl` file of `{"messages": [..., {"role": "assistant", ...}]}` lines.
        tokenizer_digest: the student's. Where the teacher's differs, the examples come without response tokens and
            soft labels, so that their text is encoded anew; None keeps them.

    Raises:
        NotFoundError: there is nothing at data_file.
        DatasetError: it is unfinished, damaged, or not in this form; all bad lines are named together.
    """
    uri = absolute(data_file)
    if uri.endswith(".jsonl"):
        return _read_jsonl(uri, tokenizer_digest)
    return _read_folder(uri, tokenizer_digest)


def _read_folder(folder: str, tokenizer_digest: str | None) -> tuple[list[Example], Manifest]:
    manifest, _ = read_manifest_and_etag(folder)
    if not manifest.finished:
        raise DatasetError(
            f"{folder} is not finished: {manifest.counts.get('kept', 0)} of {manifest.counts.get('asked', '?')} rows "
            "are there. Run the same create_data command again; it goes on where it stopped."
        )
    tables = (read_table(folder, shard) for shard in manifest.shards)
    examples = [example for table in tables for example in examples_from_table(table)]
    if tokenizer_digest is not None and manifest.teacher.get("tokenizer_digest") != tokenizer_digest:
        logger.warning("%s: the teacher has another tokenizer; its answers are encoded anew from their text.", folder)
        without: dict[str, Any] = {"response_tokens": None, "top_ids": None, "top_logprobs": None}
        examples = [dataclasses.replace(example, **without) for example in examples]
    return examples, manifest


def _read_jsonl(uri: str, tokenizer_digest: str | None) -> tuple[list[Example], Manifest | None]:
    data = None
    if storage.exists(uri):
        data = storage.read_bytes(uri)
    folder = folder_of(uri)
    if storage.exists(join(folder, MANIFEST)):
        examples, manifest = _read_folder(folder, tokenizer_digest)
        if data is None or data == to_jsonl(examples):
            return examples, manifest
        logger.warning("%s was changed after create_data wrote it; it is taken as it is.", uri)
    elif data is None:
        raise NotFoundError(f"data_file: {uri} does not exist. Create it with jobs.create_data, or name another one.")
    logger.warning("%s has no manifest of its own: nothing is known about its prompt, teacher or sampling.", uri)
    return examples_from_jsonl(data, uri), None


def examples_from_jsonl(data: bytes, source: str) -> list[Example]:
    """Return the examples of JSON lines `{"messages": [...]}` whose last message is the assistant's."""
    examples: list[Example] = []
    repetitions: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
        except (ValueError, KeyError, TypeError):
            faults.append(f'line {number}: not a JSON object with "messages"')
            continue
        found = _example_faults(messages)
        if found:
            faults.append(f"line {number}: {'; '.join(found)}")
            continue
        identifier = digest(messages)
        repetitions[identifier] += 1  # a repeated line is a row of its own
        examples.append(_bare_example(messages, f"{identifier}-{repetitions[identifier]}"))
    if faults:
        shown = "\n  ".join(faults[:20]) + (f"\n  and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise DatasetError(
            f"{source} cannot be used:\n  {shown}\nEach line needs messages that end with the assistant's."
        )
    if not examples:
        raise DatasetError(f"{source} holds no examples.")
    return examples


def _example_faults(messages: Any) -> list[str]:
    faults = message_faults(messages)
    if faults:
        return faults
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or messages[-2]["role"] != "user":
        return ["the last two messages must be a user's and the assistant's"]
    try:
        digest(messages)
    except UnicodeEncodeError:
        return ["the text holds half of a surrogate pair, which is no character"]
    return []


def _bare_example(messages: list[Message], identifier: str) -> Example:
    return Example(
        id=identifier,
        query_id=digest(messages[:-1]),
        messages=messages[:-1],
        response=messages[-1]["content"],
        response_tokens=None,
    )
