"""How many tokens of P a student's prompts do without: recorded with a version, and counted as it serves."""

import json
from typing import TYPE_CHECKING

from raydistill.core import storage
from raydistill.core.prompts import Prompt, student_messages, teacher_messages
from raydistill.core.records import Manifest
from raydistill.core.uris import absolute, join
from raydistill.dataset.layout import folder_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUERY = [{"role": "user", "content": "x"}]


def count_saved_tokens(
    data_file: str, manifest: Manifest | None, renderer: str, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, int]:
    """Return `{"prompt_tokens_saved": n}`: by how much P makes a prompt longer, in the student's own template.

    Args:
        data_file: the dataset, which keeps P beside its shards.
        manifest: the dataset's; None where nothing is known of it.
        renderer: the student's.
        tokenizer: the student's.

    Returns:
        An empty dict where the dataset does not say which P it was made with, or does not keep it.
    """
    if manifest is None or not manifest.prompt_digest:
        return {}
    uri = join(folder_of(absolute(data_file)), "prompts", f"{manifest.prompt_digest}.json")
    if not storage.exists(uri):
        return {}
    from raydistill.renderers import get_renderer

    prompt = Prompt(**json.loads(storage.read_bytes(uri)))
    build = get_renderer(renderer, tokenizer).build_generation_prompt
    return {
        "prompt_tokens_saved": build(teacher_messages(prompt, _QUERY)).length - build(student_messages(_QUERY)).length
    }
