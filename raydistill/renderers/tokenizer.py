"""A tokenizer from a model's folder, what identifies it, and the tokens that end a turn."""

import json
from pathlib import Path
from typing import Any

from raydistill.core.errors import ConfigError, NotFoundError
from raydistill.core.records import digest

_SENTINEL = "raydistill"


def load_tokenizer(model_dir: str) -> Any:
    """Return the tokenizer saved in a local folder; code that comes with a model is never run.

    Raises:
        NotFoundError: the folder holds no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer

    if not Path(model_dir).is_dir():
        raise NotFoundError(f"tokenizer: {model_dir} is no folder. Resolve the model's name first (resolve_model).")
    try:
        return AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise NotFoundError(
            f"tokenizer: {model_dir} holds none that can be read ({error}). "
            "A model's folder needs tokenizer.json and tokenizer_config.json."
        ) from error


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest that is equal where two tokenizers map every text to the same ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest({"vocab": tokenizer.get_vocab(), "kind": type(tokenizer).__name__})
    state = json.loads(backend.to_str())
    for setting in ("padding", "truncation"):  # of the last call, not of the tokenizer
        state.pop(setting, None)
    return digest(state)


def stop_tokens(tokenizer: Any) -> list[int]:
    """Return the token ids that end a completion; the first is the one a response is trained to end with.

    The chat template's end-of-turn token comes first (what it writes right after an assistant's text, where
    that is a special token), then the end-of-sequence token where it is another one.

    Raises:
        ConfigError: the tokenizer has neither.
    """
    found = []
    if tokenizer.chat_template:
        end_of_turn = _end_of_turn(tokenizer)
        if end_of_turn is not None:
            found.append(end_of_turn)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in found:
        found.append(int(tokenizer.eos_token_id))
    if not found:
        raise ConfigError(
            f"tokenizer: {tokenizer.name_or_path} has neither an end-of-sequence token nor an end-of-turn token in "
            "its chat template, so no answer could ever end. Set eos_token in its tokenizer_config.json."
        )
    return found


def _end_of_turn(tokenizer: Any) -> int | None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    _, sentinel, after = text.rpartition(_SENTINEL)
    if not sentinel or not after:
        return None
    first = tokenizer.encode(after, add_special_tokens=False)[0]
    return int(first) if first in tokenizer.added_tokens_decoder else None
