"""From a row to the teacher's answers, without Ray: what is asked, and what stands in the ledger for it."""

import json
from collections.abc import Sequence

import pytest

from raydistill.core.answers import TOO_LONG, row_seed
from raydistill.core.prompts import Prompt
from raydistill.core.records import TokenRequest, TokenResult, Usage, digest
from raydistill.renderers import get_renderer, load_tokenizer
from raydistill.teacher.attempt import AskSettings
from raydistill.teacher.converse import Conversation

PROMPT = Prompt("system", [{"role": "system", "content": "Be brief."}])
SETTINGS = AskSettings(
    temperature=0.5,
    top_p=0.9,
    max_tokens=30,
    stop=(),
    top_logprobs=None,
    all_turns=False,
    concurrency=4,
    num_actors=1,
    max_replicas=1,
    rows_per_call=4,
    commit_rows=8,
    max_attempts=2,
    timeout_seconds=5,
    context_tokens=256,
)
TURNS = [
    {"role": "system", "content": "You speak Latin."},
    {"role": "user", "content": "salve"},
    {"role": "assistant", "content": "not the teacher's"},
    {"role": "user", "content": "quid agis"},
]


class Echo:
    """Answers with the number of the request, or as a text in the prompt says; keeps what it was asked."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.asked: list[TokenRequest] = []

    def ask(self, requests: Sequence[TokenRequest]) -> list[TokenResult]:
        self.asked += requests
        return [self._answer(request) for request in requests]

    def _answer(self, request: TokenRequest) -> TokenResult:
        text = self.tokenizer.decode(request.tokens)
        usage = Usage(len(request.tokens), 0, 3)
        if "FAIL" in text:
            return TokenResult([], [], "error", usage, error="refused")
        tokens = self.tokenizer.encode(f"answer {self.asked.index(request)}", add_special_tokens=False)
        if "HALT" in text:
            return TokenResult(self.tokenizer.encode("yes END of it", add_special_tokens=False), [], "stop", usage)
        return TokenResult([*tokens, request.stop_token_ids[0]], [], "stop", usage)


@pytest.fixture
def renderer(tokenizer_dir):
    return get_renderer("chat", load_tokenizer(tokenizer_dir))


@pytest.fixture
def echo(tokenizer_dir):
    return Echo(load_tokenizer(tokenizer_dir))


def make_row(messages: list[dict]) -> dict:
    return {"id": digest(messages), "query_id": "q", "sample_index": 1, "messages": json.dumps(messages)}


def converse(renderer, echo, **changes) -> Conversation:
    return Conversation(PROMPT, renderer, echo, SETTINGS.__class__(**{**SETTINGS.__dict__, **changes}))


def test_a_request_follows_from_the_row_and_shows_p(renderer, echo):
    row = make_row([{"role": "user", "content": "hello"}])
    (answer,) = converse(renderer, echo).answer([row])
    (request,) = echo.asked
    assert "Be brief." in echo.tokenizer.decode(request.tokens)
    assert (request.temperature, request.top_p, request.max_tokens) == (0.5, 0.9, 30)
    assert request.seed == row_seed(row["id"])
    assert (answer.id, answer.turn, answer.text, answer.sample_index) == (row["id"], 0, "answer 0", 1)
    assert answer.messages == [{"role": "user", "content": "hello"}]


def test_the_last_turn_is_answered_on_the_history_as_it_is(renderer, echo):
    (answer,) = converse(renderer, echo).answer([make_row(TURNS)])
    assert answer.messages == TURNS
    assert "not the teacher's" in echo.tokenizer.decode(echo.asked[0].tokens)


def test_every_turn_is_answered_on_the_teachers_own_answers(renderer, echo):
    row, single = make_row(TURNS), make_row([{"role": "user", "content": "alone"}])
    first, second, other = converse(renderer, echo, all_turns=True).answer([row, single])
    assert [first.id, second.id, other.id] == [row["id"], f"{row['id']}-1", single["id"]]
    assert first.messages == TURNS[:2]
    assert second.messages == [*TURNS[:2], {"role": "assistant", "content": first.text}, TURNS[3]]
    assert (second.turn, second.text) == (1, "answer 2")
    assert len({request.seed for request in echo.asked}) == 3
    for request in echo.asked:
        assert echo.tokenizer.decode(request.tokens).count("Be brief.") == 1


def test_a_turn_after_one_without_an_answer_is_not_asked(renderer, echo):
    messages = [{"role": "user", "content": "FAIL"}, *TURNS[2:]]
    first, second = converse(renderer, echo, all_turns=True).answer([make_row(messages)])
    assert first.error == "refused"
    assert second.error == "turn 0 has no answer to go on from: refused"
    assert len(echo.asked) == 1


def test_what_does_not_fit_is_told_and_not_asked(renderer, echo):
    long, short = make_row([{"role": "user", "content": "long " * 300}]), make_row([{"role": "user", "content": "a"}])
    too_long, answered = converse(renderer, echo).answer([long, short])
    assert too_long.finish_reason == TOO_LONG
    assert too_long.usage.prompt_tokens == 0 < answered.usage.prompt_tokens, "what is not sent costs nothing"
    assert "the teacher takes 256" in too_long.error
    assert answered.error is None
    assert len(echo.asked) == 1


def test_max_tokens_never_exceed_the_room(renderer, echo):
    row = make_row([{"role": "user", "content": "hello"}])
    converse(renderer, echo, max_tokens=10_000).answer([row])
    (request,) = echo.asked
    assert request.max_tokens == 256 - len(request.tokens)


def test_a_stop_text_is_no_part_of_the_answer_and_a_stop_token_takes_its_place(renderer, echo):
    (answer,) = converse(renderer, echo, stop=("END", "of")).answer([make_row([{"role": "user", "content": "HALT"}])])
    assert echo.asked[0].stop == ["END", "of"]
    assert answer.text == "yes "
    assert answer.tokens == renderer.encode_response("yes ")
    assert answer.usage.completion_tokens == 3
