"""Chat messages to tokens and back, through the model's own chat template or through none."""

from collections.abc import Sequence
from typing import Any, Protocol

from raydistill.core.errors import ConfigError
from raydistill.core.prompts import message_faults
from raydistill.core.records import Message, digest
from raydistill.renderers.tokenizer import stop_tokens
from raydistill.types import ModelInput

NAMES = ("chat", "raw")

# Rendered for the template's digest: a default system text, a system turn and a second turn all show in them.
_DIGEST_CONVERSATIONS = (
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
)


class Renderer(Protocol):
    """What maps messages to the tokens that one model was trained on, and its tokens to a message."""

    name: str

    @property
    def template_digest(self) -> str:
        """What identifies the mapping; teacher, trainer and server must agree on it."""
        ...

    def build_generation_prompt(self, messages: list[Message]) -> ModelInput:
        """Return the prompt after which the assistant's next turn is to be generated."""
        ...

    def get_stop_sequences(self) -> list[int]:
        """Return the token ids that end a turn; the first is the one that a response is trained to end with."""
        ...

    def encode_response(self, text: str) -> list[int]:
        """Return the tokens of a response of which only the text is known, with the stop token that ends it."""
        ...

    def parse_response(self, tokens: Sequence[int]) -> tuple[Message, bool]:
        """Return the assistant's message and whether it ended as it should, in exactly one stop token."""
        ...


def get_renderer(name: str, tokenizer: Any) -> Renderer:
    """Return a renderer for a tokenizer.

    Args:
        name: "chat" (the tokenizer's own chat template) or "raw" (the plain text of the last user message).
        tokenizer: of the model's folder, see `load_tokenizer`.

    Raises:
        ConfigError: another name; no chat template; nothing that could end an answer.
    """
    if name == "chat":
        return ChatRenderer(tokenizer)
    if name == "raw":
        return RawRenderer(tokenizer)
    raise ConfigError(f"renderer: {name!r} is not known; allowed are {', '.join(NAMES)}.")


class ChatRenderer:
    """Messages by the tokenizer's chat template."""

    name = "chat"

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer that has a chat template."""
        if not tokenizer.chat_template:
            raise ConfigError(
                f"renderer: the tokenizer of {tokenizer.name_or_path} has no chat template. Use an instruct model, add "
                'a chat_template.jinja to its folder, or choose renderer = "raw".'
            )
        self._tokenizer = tokenizer
        self._stop = stop_tokens(tokenizer)

    @property
    def template_digest(self) -> str:
        """A digest of the template and of what it renders (without the rendering where that depends on the date)."""
        template = self._tokenizer.chat_template
        rendered: list[str] = []
        if "strftime_now" not in str(template):
            rendered = [self._render_or_refusal(conversation) for conversation in _DIGEST_CONVERSATIONS]
        return digest({"template": template, "rendered": rendered, "stop": self._stop})

    def _render_or_refusal(self, messages: list[Message]) -> str:
        try:
            return self._render(messages)
        except ConfigError:
            return "refused"

    def _render(self, messages: list[Message]) -> str:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ConfigError(
                f"renderer: the chat template of {self._tokenizer.name_or_path} refuses these messages "
                f"({', '.join(message['role'] for message in messages)}): {error}."
            ) from error

    def build_generation_prompt(self, messages: list[Message]) -> ModelInput:
        """Return the rendered conversation and the opening of the assistant's turn, as tokens."""
        _check_messages(messages)
        text = self._render(messages)
        return ModelInput.from_ints(self._tokenizer.encode(text, add_special_tokens=False))

    def get_stop_sequences(self) -> list[int]:
        """Return the end-of-turn and end-of-sequence ids; a response ends with the first."""
        return list(self._stop)

    def encode_response(self, text: str) -> list[int]:
        """Return a text's tokens and the first stop token."""
        return [*self._tokenizer.encode(text, add_special_tokens=False), self._stop[0]]

    def parse_response(self, tokens: Sequence[int]) -> tuple[Message, bool]:
        """Return the assistant's message up to the stop token, and whether there is exactly one, at the end."""
        return _parse(self._tokenizer, self._stop, tokens)


class RawRenderer:
    """The plain text of the last user message: what `tokenizer.encode(text)` gives, without any template."""

    name = "raw"

    def __init__(self, tokenizer: Any) -> None:
        """Take any tokenizer with a token that can end an answer."""
        self._tokenizer = tokenizer
        self._stop = stop_tokens(tokenizer)

    @property
    def template_digest(self) -> str:
        """A digest of what stands around a text (a beginning-of-sequence token, say) and of the stop tokens."""
        return digest({"template": None, "rendered": self._tokenizer.encode("a"), "stop": self._stop})

    def build_generation_prompt(self, messages: list[Message]) -> ModelInput:
        """Return the tokens of the last user message's text."""
        _check_messages(messages)
        texts = [message["content"] for message in messages if message["role"] == "user"]
        if not texts:
            raise ConfigError("renderer: raw needs a user message; there is none among these messages.")
        return ModelInput.from_ints(self._tokenizer.encode(texts[-1]))

    def get_stop_sequences(self) -> list[int]:
        """Return the end-of-turn and end-of-sequence ids; a response ends with the first."""
        return list(self._stop)

    def encode_response(self, text: str) -> list[int]:
        """Return a text's tokens and the first stop token."""
        return [*self._tokenizer.encode(text, add_special_tokens=False), self._stop[0]]

    def parse_response(self, tokens: Sequence[int]) -> tuple[Message, bool]:
        """Return the assistant's message up to the stop token, and whether there is exactly one, at the end."""
        return _parse(self._tokenizer, self._stop, tokens)


def _check_messages(messages: list[Message]) -> None:
    faults = message_faults(messages)
    for index, message in enumerate(messages if not faults else []):
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:
            faults.append(f"message {index} holds half a surrogate pair at character {error.start}, which is no text")
    if faults:
        raise ConfigError(f"renderer: {'; '.join(faults)}.")


def _parse(tokenizer: Any, stop: list[int], tokens: Sequence[int]) -> tuple[Message, bool]:
    ends = [index for index, token in enumerate(tokens) if token in stop]
    body = list(tokens[: ends[0]]) if ends else list(tokens)
    text = tokenizer.decode(body, skip_special_tokens=True)
    return {"role": "assistant", "content": text}, len(ends) == 1 and ends[0] == len(tokens) - 1
