"""What a client of a served model sends and gets: token ids in, token ids and log-probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

StopReason = Literal["stop", "length"]


@dataclass(frozen=True)
class ModelInput:
    """A prompt as token ids.

    Attributes:
        tokens: the ids, special tokens included; nothing is added on the way to the model.
    """

    tokens: list[int]

    @classmethod
    def from_ints(cls, tokens: Sequence[int]) -> "ModelInput":
        """Return a prompt of these token ids."""
        return cls(tokens=[int(token) for token in tokens])

    def to_ints(self) -> list[int]:
        """Return the token ids as a list of its own."""
        return list(self.tokens)

    @property
    def length(self) -> int:
        """The number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class SamplingParams:
    """How to sample a completion.

    Attributes:
        max_tokens: at most this many new tokens; None leaves the limit to the server.
        seed: the same seed, prompt and version give the same tokens; None is unseeded.
        temperature: 0 is greedy.
        top_k: sample among the k most likely tokens; -1 among all (the protocol's own value).
        top_p: sample among the most likely tokens of this total probability.
        stop: a string, strings or token ids that end the completion; [] never ends it, not even at
            the end-of-sequence token; None ends it there.
    """

    max_tokens: int | None = None
    seed: int | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop: str | list[str] | list[int] | None = None


@dataclass(frozen=True)
class SampledSequence:
    """One completion.

    Attributes:
        tokens: the new token ids, the stop token included where one ended the completion.
        logprobs: of each of `tokens`, in nats, before temperature, top_k and top_p; None where not told.
        stop_reason: "stop" or "length" (cut at max_tokens).
    """

    tokens: list[int]
    logprobs: list[float] | None
    stop_reason: StopReason


@dataclass(frozen=True)
class SampleResponse:
    """The completions of one request, and the exact version that produced them."""

    sequences: list[SampledSequence]
    model: str = ""
