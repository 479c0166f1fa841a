"""Which rule an answer breaks first, and what the Drop says of it."""

import pickle
import time
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.answers import TOO_LONG
from raydistill.core.errors import DatasetError
from raydistill.core.records import DROP_REASONS, Drop, Example
from raydistill.dataset import json_answers, timed
from raydistill.dataset.judge import Judgement
from raydistill.dataset.keep import DETAIL_CHARS, Origin, keep
from raydistill.dataset.quality import JudgeConfig, QualityConfig
from raydistill.dataset.rules import Rules, compile_rules
from tests.dataset.answers import make_answer

ORIGIN = Origin("model@revision", "p" * 32)
SCHEMA = {
    "type": "object",
    "required": ["team"],
    "additionalProperties": False,
    "properties": {"team": {"enum": ["billing", "sales"]}, "tags": {"type": "array", "items": {"pattern": "^[a-z]+$"}}},
}


def verdict_of(text: str, judgement: Judgement | None = None, **table: object) -> Drop | Example:
    judge = JudgeConfig(rubric="good", threshold=3) if judgement is not None else None
    rules = compile_rules(QualityConfig.model_validate(table), judge)
    return keep(make_answer(text=text), ORIGIN, rules, judgement)


def test_keep_makes_an_example_without_p_and_with_the_stop_token() -> None:
    assert keep(make_answer(), ORIGIN) == Example(
        "a1",
        "q1",
        [{"role": "user", "content": "Grüße \u2028 <|im_end|>"}],
        "yes",
        [5, 6, 2],
        "model@revision",
        "p" * 32,
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finish_reason": "length"}, "truncated"),
        ({"finish_reason": "length", "text": ""}, "truncated"),
        ({"text": ""}, "empty"),
        ({"text": " \n "}, "empty"),
        ({"error": "timeout", "finish_reason": "error"}, "failed"),
        ({"error": "timeout", "finish_reason": "stop"}, "failed"),
        ({"finish_reason": "abort"}, "failed"),
        ({"error": "300 tokens", "finish_reason": TOO_LONG}, "too_long"),
    ],
)
def test_an_answer_without_a_good_end_is_dropped_without_any_rule(changes: dict, reason: str) -> None:
    verdict = keep(make_answer(**changes), ORIGIN)
    assert isinstance(verdict, Drop)
    assert (verdict.id, verdict.query_id, verdict.sample_index, verdict.reason) == ("a1", "q1", 2, reason)


@pytest.mark.parametrize(
    ("table", "text", "reason", "detail"),
    [
        ({"min_tokens": 4}, "yes", "short_answer", "3 tokens, min_tokens=4"),
        ({"max_tokens": 2}, "yes", "long_answer", "3 tokens, max_tokens=2"),
        ({"min_chars": 4}, "  yes   ", "short_answer", "3 characters, min_chars=4"),
        ({"must_match": ["y", "^no"]}, "yes", "unmatched", "'^no' not found"),
        ({"must_not_match": ["n", "e."]}, "yes", "forbidden", "'e.' found: 'es'"),
        ({"json_schema": SCHEMA}, "yes", "unparsable", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ({"json_schema": {}}, '{"a": 1} and more', "unparsable", "not JSON: Extra data: line 1 column 10 (char 9)"),
        ({"json_schema": {}}, '{"a": 1, "a": 2}', "unparsable", "not JSON: a key stands twice"),
        ({"json_schema": {}}, '{"a": NaN}', "unparsable", "not JSON: NaN is no JSON"),
        ({"json_schema": {}}, "1" * 5000, "unparsable", "not JSON: Exceeds the limit"),
        ({"json_schema": {}}, "[" * 100_000, "unparsable", "not JSON: maximum recursion depth"),
        ({"json_schema": SCHEMA}, '{"team": "x"}', "invalid", "$.team: 'x' is not one of ['billing', 'sales']"),
        ({"json_schema": SCHEMA}, "{}", "invalid", "$: 'team' is a required property"),
        ({"json_schema": SCHEMA}, '{"team": "sales", "tags": ["a", "B"]}', "invalid", "$.tags[1]: 'B' does not match"),
        ({"json_schema": {"$ref": "#"}}, "1", "invalid", "cannot be checked: RecursionError"),
        ({"json_schema": {"multipleOf": 0.5}}, "1" + "0" * 400, "invalid", "cannot be checked: OverflowError"),
    ],
)
def test_a_broken_rule_is_named(table: dict, text: str, reason: str, detail: str) -> None:
    verdict = verdict_of(text, **table)
    assert isinstance(verdict, Drop)
    assert verdict.reason == reason
    assert verdict.detail.startswith(detail)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"min_tokens": 3, "max_tokens": 3, "min_chars": 3}, "yes"),
        ({"must_match": ["^y", "s$"], "must_not_match": ["no", "YES"]}, "yes"),
        ({"must_match": [r"(?i)^JA\b(?!,)", r"\w{5}"]}, "ja Grüße"),
        ({"json_schema": {}}, "[1, null]"),
        ({"json_schema": SCHEMA}, ' {"team": "billing", "tags": ["a"]}\n'),
    ],
)
def test_an_answer_that_satisfies_the_rules_is_kept(table: dict, text: str) -> None:
    assert isinstance(verdict_of(text, **table), Example)


REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I\N{RIGHT SINGLE QUOTATION MARK}m not able to do this.",
    "  I cannot assist with that request.",
    "I am unable to provide medical advice.",
    "As an AI language model, I don't have opinions.",
    "As a large language model I must decline.",
    "Unfortunately this is against my guidelines.",
    "Tut mir leid, dabei kann ich Ihnen leider nicht helfen.",
    "Ich kann diese Frage nicht beantworten.",
    "Désolé, je ne peux pas vous aider.",
    "Lo siento, no puedo ayudar con eso.",
    "Desculpe, não posso ajudar com isso.",
    "Mi dispiace, non posso aiutarti.",
    "很抱歉，我无法回答这个问题。",
    "申し訳ありませんが、お答えできません。",
    "죄송하지만 도와드릴 수 없습니다.",
]
NOT_REFUSED = [
    "I'm sorry to hear that your parcel is late. We will send a new one.",
    "You can help by sending a photo. I can assist you with the rest.",
    "As an AI engineer, I build models.",
    "As an AI assistant, I can help you with that at once.",
    "Ich kann Ihnen gern helfen.",
    "Je peux vous aider.",
    "Puedo ayudar con eso.",
    "抱歉让您久等了。您的订单已经发出。",
    "The character says: " + "la " * 70 + "I cannot help with that.",
]


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_is_dropped_where_that_is_asked_for(text: str) -> None:
    assert isinstance(verdict_of(text), Example)
    verdict = verdict_of(text, drop_refusals=True)
    assert isinstance(verdict, Drop)
    assert verdict.reason == "refused"
    assert verdict.detail


@pytest.mark.parametrize("text", NOT_REFUSED)
def test_what_only_looks_like_a_refusal_is_kept(text: str) -> None:
    assert isinstance(verdict_of(text, drop_refusals=True), Example)


def test_refusals_may_be_described_anew() -> None:
    assert isinstance(verdict_of(REFUSED[0], drop_refusals=True, refusal_patterns=["pass$"]), Example)
    assert isinstance(verdict_of("PASS", drop_refusals=True, refusal_patterns=["pass$"]), Drop)


def test_the_first_broken_rule_counts() -> None:
    """Each step mends the fault that was named, and the next one appears."""
    table = {
        "drop_refusals": True,
        "min_tokens": 2,
        "max_tokens": 4,
        "must_match": ["team"],
        "must_not_match": ["NO"],
        "json_schema": SCHEMA,
    }
    rules = compile_rules(QualityConfig.model_validate(table), JudgeConfig(rubric="good", threshold=3))
    refusal = "I cannot help. NO"
    steps = [
        ({"finish_reason": TOO_LONG, "error": "x", "text": ""}, "too_long"),
        ({"finish_reason": "length", "error": "x", "text": ""}, "failed"),
        ({"finish_reason": "length", "text": ""}, "truncated"),
        ({"text": "", "tokens": [1]}, "empty"),
        ({"text": refusal, "tokens": [1]}, "short_answer"),
        ({"text": refusal, "tokens": [1] * 5}, "long_answer"),
        ({"text": refusal}, "refused"),
        ({"text": "NO"}, "forbidden"),
        ({"text": "{"}, "unmatched"),
        ({"text": "{ team"}, "unparsable"),
        ({"text": '{"team": 1}'}, "invalid"),
    ]
    found = [keep(make_answer(**changes), ORIGIN, rules) for changes, _ in steps]
    good = make_answer(text='{"team": "sales"}')
    scores = (None, 2.0, 3.0)
    found += [keep(good, ORIGIN, rules, Judgement("a1", "r", score, "reply")) for score in scores]
    reasons = [verdict.reason if isinstance(verdict, Drop) else "kept" for verdict in found]
    assert reasons == [*(reason for _, reason in steps), "unjudged", "low_score", "kept"]
    assert reasons[:-1] == list(DROP_REASONS)[:-2], "duplicates are only seen among all rows"


@given(
    st.builds(
        make_answer,
        text=st.text() | st.sampled_from([*REFUSED, '{"team": "sales"}', "{}"]),
        tokens=st.lists(st.integers(0, 9), max_size=6),
        finish_reason=st.sampled_from(["stop", "length", "error", TOO_LONG, "abort", ""]),
        error=st.none() | st.text(max_size=900),
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "drop_refusals": st.booleans(),
            "min_tokens": st.integers(0, 4),
            "min_chars": st.integers(0, 9),
            "must_match": st.just(["a"]),
            "must_not_match": st.just(["b"]),
            "json_schema": st.just(SCHEMA),
        },
    ),
    st.none() | st.builds(Judgement, st.just("a1"), st.just("r"), st.none() | st.floats(0, 9), st.text()),
)
def test_keep_never_gives_an_unknown_reason_or_a_long_detail(answer, table, judgement) -> None:
    rules = compile_rules(QualityConfig.model_validate(table), JudgeConfig(rubric="good", threshold=3))
    verdict = keep(answer, ORIGIN, rules, judgement)
    if isinstance(verdict, Drop):
        assert verdict.reason in DROP_REASONS
        assert len(verdict.detail) <= DETAIL_CHARS
    else:
        assert answer.finish_reason == "stop" and answer.error is None and answer.text.strip()


def test_a_long_detail_is_cut() -> None:
    detail = keep(make_answer(error="x" * 2000, finish_reason="error"), ORIGIN).detail
    assert detail == "x" * (DETAIL_CHARS - 1) + "…"


def test_a_schema_is_never_fetched_from_the_net(monkeypatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **_: asked.append(args))
    violation = json_answers.find_violation(1, '{"$dynamicRef":"https://example.invalid/schema.json"}')
    assert violation.startswith("cannot be checked")
    assert not asked


def test_an_answer_that_was_not_judged_is_not_kept() -> None:
    rules = compile_rules(QualityConfig(), JudgeConfig(rubric="good", threshold=3))
    verdict = keep(make_answer(), ORIGIN, rules)
    assert (verdict.reason, verdict.detail) == ("unjudged", "the judge was not asked")


def test_rules_can_be_sent_to_a_worker() -> None:
    table = {"drop_refusals": True, "must_match": ["a"], "must_not_match": ["b"], "json_schema": SCHEMA}
    rules = compile_rules(QualityConfig.model_validate(table))
    keep(make_answer(text='{"a": 1}'), ORIGIN, rules)  # what it makes on the way is not sent
    assert pickle.loads(pickle.dumps(rules)) == rules != Rules()


@pytest.mark.parametrize(
    "table", [{"must_match": [r"(x+x+)+y"]}, {"json_schema": {"pattern": r"(x+x+)+y"}}], ids=["must_match", "pattern"]
)
def test_an_expression_that_never_ends_is_an_error_that_names_it(table: dict, monkeypatch) -> None:
    monkeypatch.setattr(timed, "LONGEST_SEARCH_SECONDS", 0.05)
    start = time.monotonic()
    with pytest.raises(DatasetError, match=r"create_data.quality.*\(x\+x\+\)\+y.*takes more than 0.05 s"):
        verdict_of(f'"{"x" * 5000}"', **table)
    assert time.monotonic() - start < 5
