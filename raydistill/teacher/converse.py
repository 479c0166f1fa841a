"""From a row to the teacher's answers: to its last user turn, or to every one, each on the answers before it."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Protocol

from raydistill.core.answers import TOO_LONG, row_seed, turn_id
from raydistill.core.errors import ConfigError
from raydistill.core.prompts import Prompt
from raydistill.core.records import Answer, Message, TokenRequest, TokenResult
from raydistill.renderers import Renderer
from raydistill.teacher.attempt import AskSettings, failed_result
from raydistill.teacher.rows import render_messages, split_turns


class Ask(Protocol):
    """Gives one result for each request, whatever happens; see attempt.Attempts."""

    def ask(self, requests: Sequence[TokenRequest]) -> list[TokenResult]:
        """Return the results in order."""
        ...


@dataclasses.dataclass
class _Talk:
    """One row on its way: what was said so far, and the turns that are still to be said and answered."""

    row: dict[str, Any]
    said: list[Message]
    to_say: list[list[Message]]
    answers: list[Answer]


class Conversation:
    """Answers rows, several at a time, turn by turn."""

    def __init__(self, prompt: Prompt, renderer: Renderer, ask: Ask, settings: AskSettings) -> None:
        """Take P, the teacher's renderer, what asks, and how to ask."""
        self._prompt = prompt
        self._renderer = renderer
        self._ask = ask
        self._settings = settings
        self._stop_token_ids = renderer.get_stop_sequences()

    def answer(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """Return the answers to rows of REQUEST_SCHEMA; those to the turns of one row stand together, in order."""
        talks = [self._open(row) for row in rows]
        while waiting := [talk for talk in talks if talk.to_say]:
            self._answer_turn(waiting)
        return [answer for talk in talks for answer in talk.answers]

    def _open(self, row: dict[str, Any]) -> _Talk:
        return _Talk(row, [], split_turns(json.loads(row["messages"]), self._settings.all_turns), [])

    def _answer_turn(self, talks: list[_Talk]) -> None:
        """Let each of them say its next turn and have it answered."""
        requests: list[TokenRequest] = []
        asked: list[_Talk] = []
        for talk in talks:
            talk.said += talk.to_say.pop(0)
            before = talk.answers[-1] if talk.answers else None
            if before is not None and (before.error is not None or before.finish_reason != "stop"):
                reason = before.error or f"it ended with {before.finish_reason!r}"
                self._take(talk, failed_result([], f"turn {before.turn} has no answer to go on from: {reason}"))
                continue
            request = self._make_request(talk)
            if isinstance(request, TokenRequest):
                requests.append(request)
                asked.append(talk)
            else:
                self._take(talk, request)
        for talk, result in zip(asked, self._ask.ask(requests), strict=True):
            self._take(talk, result)

    def _make_request(self, talk: _Talk) -> TokenRequest | TokenResult:
        """Return what to ask, or what stands for the answer where the teacher cannot take it."""
        settings = self._settings
        try:
            tokens = render_messages(talk.said, self._prompt, self._renderer)
        except ConfigError as error:  # a sequence of roles that only the teacher's own answers make
            return failed_result([], str(error))
        room = settings.context_tokens - len(tokens)
        if room < 1:
            error = f"the prompt has {len(tokens)} tokens, the teacher takes {settings.context_tokens}"
            return failed_result([], error, finish_reason=TOO_LONG)  # it is not sent, so it costs nothing
        return TokenRequest(
            tokens=tokens,
            max_tokens=min(settings.max_tokens, room),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=row_seed(turn_id(talk.row["id"], len(talk.answers))),
            stop_token_ids=self._stop_token_ids,
            stop=list(settings.stop),
            top_logprobs=settings.top_logprobs,
        )

    def _take(self, talk: _Talk, result: TokenResult) -> None:
        text = self._renderer.parse_response(result.tokens)[0]["content"] if result.tokens else ""
        tokens, is_cut = list(result.tokens), False
        if result.finish_reason == "stop" and tokens[-1:] and tokens[-1] not in self._stop_token_ids:
            # One of the stop texts ended it. The student ends its answers by itself: with the stop token, right there.
            text = _cut(text, self._settings.stop)
            tokens, is_cut = self._renderer.encode_response(text), True
        turn = len(talk.answers)
        answer = Answer(
            id=turn_id(talk.row["id"], turn),
            query_id=talk.row["query_id"],
            sample_index=talk.row["sample_index"],
            turn=turn,
            messages=list(talk.said),
            text=text,
            tokens=tokens,
            finish_reason=result.finish_reason,
            usage=result.usage,
            latency_seconds=result.latency_seconds,
            error=result.error,
            top_ids=None if is_cut else result.top_ids,
            top_logprobs=None if is_cut else result.top_logprobs,
        )
        talk.answers.append(answer)
        talk.said.append({"role": "assistant", "content": text})


def _cut(text: str, stop: Sequence[str]) -> str:
    """Return what stands before the first stop text."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]
