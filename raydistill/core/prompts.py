"""The only place that knows how P and a query become messages, for the teacher and for the student."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raydistill.core.errors import ConfigError
from raydistill.core.records import Message, digest

QUERY_SLOT = "{query}"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """P, the long prompt: a system text, messages with few-shot turns, or a user template with `{query}`."""

    form: Literal["system", "messages", "template"]
    messages: list[Message]

    @property
    def digest(self) -> str:
        """What identifies this P in a dataset and in a version."""
        return digest({"form": self.form, "messages": self.messages})


def load_prompt(path: str | Path) -> Prompt:
    """Return P from a `.md` or `.txt` file (system text, or template where it holds `{query}`) or a `.json` list.

    Raises:
        ConfigError: the file is missing, empty, of another kind, or no list of messages.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"prompt: {path} does not exist. Give a .md, .txt or .json file.")
    if path.suffix not in (".md", ".txt", ".json"):
        raise ConfigError(f"prompt: {path} has the suffix {path.suffix!r}; allowed are .md, .txt and .json.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt: {path} is not UTF-8 (byte {error.start}).") from error
    if not text.strip():
        raise ConfigError(f"prompt: {path} is empty.")
    if path.suffix == ".json":
        return _prompt_from_json(text, path)
    if QUERY_SLOT in text:
        return Prompt("template", [{"role": "user", "content": text.strip()}])
    return Prompt("system", [{"role": "system", "content": text.strip()}])


def _prompt_from_json(text: str, path: Path) -> Prompt:
    try:
        messages = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"prompt: {path}, line {error.lineno}: not JSON ({error.msg}).") from error
    faults = message_faults(messages)
    if faults:
        raise ConfigError(f"prompt: {path}: {'; '.join(faults)}.")
    slots = [message for message in messages if QUERY_SLOT in message["content"]]
    if slots and (len(slots) > 1 or slots[0] is not messages[-1] or messages[-1]["role"] != "user"):
        raise ConfigError(f"prompt: {path}: {QUERY_SLOT} may stand once only, in the last message, a user's.")
    if not slots and messages[-1]["role"] == "user":
        raise ConfigError(
            f"prompt: {path}: the last message is a user's without {QUERY_SLOT}, so the query has no place. "
            f"Write {QUERY_SLOT} where it belongs, or end with an assistant message."
        )
    return Prompt("template" if slots else "messages", messages)


def message_faults(messages: object) -> list[str]:
    """Return what is wrong with a list of messages; an empty list when nothing is."""
    if not isinstance(messages, list) or not messages:
        return ["a list of messages {role, content} is needed, at least one"]
    faults = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            faults.append(f"message {index} needs exactly the keys role and content")
        elif message["role"] not in ROLES:
            faults.append(f"message {index} has the role {message['role']!r}; allowed are {', '.join(ROLES)}")
        elif not isinstance(message["content"], str) or not message["content"].strip():
            faults.append(f"message {index} has no text in content")
    return faults


def teacher_messages(prompt: Prompt, query: list[Message]) -> list[Message]:
    """Return what the teacher sees: P once, before the first turn (in a template, around the last user turn)."""
    if prompt.form == "template":
        filled = prompt.messages[-1]["content"].replace(QUERY_SLOT, query[-1]["content"])
        return [*prompt.messages[:-1], *query[:-1], {"role": "user", "content": filled}]
    return [*prompt.messages, *query]


def student_messages(query: list[Message]) -> list[Message]:
    """Return what the student sees: the query alone; P is in its weights."""
    return list(query)
