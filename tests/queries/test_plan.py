"""P is cut into pieces by its own structure, and each round asks for every kind that is possible."""

from collections import Counter
from pathlib import Path

import pytest

from raydistill.core.config import find_faults
from raydistill.core.errors import ConfigError
from raydistill.core.prompts import Prompt, load_prompt
from raydistill.queries.config import SHARES, ExpansionConfig
from raydistill.queries.pieces import MAX_CHARS, cut_prompt
from raydistill.queries.plan import plan_round
from tests.queries.sources import make_query

SYSTEM = """You are the desk of a library. Be brief.

# Lending

- Children may borrow
  comics only.
- Nobody may borrow more than ten books.

# Opening

1. On Sundays we are closed. Say so.
2) On Mondays we open at ten.

# 规则

请用中文回答。不要编造事实。
"""
P = Prompt("system", [{"role": "system", "content": SYSTEM}])
SHOTS = Prompt(
    "messages",
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Is it late?"},
        {"role": "assistant", "content": "No."},
    ],
)
TEMPLATE = Prompt(
    "template", [{"role": "user", "content": "Translate this into French, word by word:\n{query}\nThanks."}]
)
KNOWN = [make_query(f"Known question {letter}?") for letter in "abcdefgh"]


def texts_of(prompt: Prompt, kind: str) -> list[str]:
    return [piece.text for piece in cut_prompt(prompt) if piece.kind == kind]


def test_cut_prompt_finds_sections_and_rules() -> None:
    assert [text.partition("\n")[0] for text in texts_of(P, "section")] == [
        "You are the desk of a library. Be brief.",
        "# Lending",
        "# Opening",
        "# 规则",
    ]
    assert texts_of(P, "rule") == [
        "You are the desk of a library.",
        "Be brief.",
        "Children may borrow comics only.",
        "Nobody may borrow more than ten books.",
        "On Sundays we are closed. Say so.",
        "On Mondays we open at ten.",
        "请用中文回答。",
        "不要编造事实。",
    ]


def test_cut_prompt_finds_shots_and_leaves_the_slot_out() -> None:
    assert texts_of(SHOTS, "section") == ["Answer in one word."]
    assert texts_of(SHOTS, "shot") == ["Message: Is it warm?\nAnswer: Yes.", "Message: Is it late?\nAnswer: No."]
    assert texts_of(TEMPLATE, "section") == ["Translate this into French, word by word:\n\nThanks."]


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_cut_prompt_cuts_long_sections_and_loses_nothing(separator: str) -> None:
    text = separator.join(f"Sentence number {number} of this long text." for number in range(200))
    sections = texts_of(Prompt("system", [{"role": "system", "content": text}]), "section")
    assert all(len(section) <= MAX_CHARS for section in sections)
    assert "".join("".join(sections).split()) == "".join(text.split())
    names = [piece.name for piece in cut_prompt(P)]
    assert len({*names}) == len(names)


def test_plan_round_is_the_same_again_and_another_one_for_another_round() -> None:
    config = ExpansionConfig(languages=["German", "Polish"])
    plan = plan_round(P, KNOWN, 100, 7, 0, config)
    assert plan == plan_round(P, KNOWN, 100, 7, 0, config)
    ids = {request.id for request in plan}
    assert len(ids) == len(plan) == 16  # 100 wanted x 1.25 / 8 a request
    for seed, round_index in ((8, 0), (7, 1)):
        assert not ids & {request.id for request in plan_round(P, KNOWN, 100, seed, round_index, config)}


def test_plan_round_deals_kinds_by_their_shares() -> None:
    config = ExpansionConfig(languages=["German"], requests_per_round=200)
    kinds = Counter(request.kind for request in plan_round(P, KNOWN, 10_000, 0, 0, config))
    assert kinds == {kind: round(200 * share) for kind, share in SHARES.items()}
    without_queries = Counter(request.kind for request in plan_round(P, [], 10_000, 0, 0, config))
    assert {*without_queries} == {*SHARES} - {"rephrase", "translate"} and sum(without_queries.values()) == 200


def test_plan_round_shows_every_rule_in_turn() -> None:
    config = ExpansionConfig(shares={"edge_case": 1})
    requests = plan_round(P, KNOWN, 64 * 8, 0, 0, config)
    rules = [piece for piece in cut_prompt(P) if piece.kind == "rule"]
    asked = Counter(request.origin[0] for request in requests)
    assert {*asked} == {rule.name for rule in rules} and max(asked.values()) == min(asked.values())
    by_name = {rule.name: rule.text for rule in rules}
    for request in requests:
        instruction = request.messages[-1]["content"]
        assert by_name[request.origin[0]] in instruction
        assert "You are the desk of a library." in instruction  # what P is about
        assert all(query.messages[0]["content"] in instruction for query in KNOWN if query.id in request.origin)


@pytest.mark.parametrize("prompt", [P, SHOTS, TEMPLATE])
@pytest.mark.parametrize("known", [[], KNOWN])
def test_plan_round_works_for_every_form_of_p(prompt: Prompt, known: list) -> None:
    for request in plan_round(prompt, known, 500, 1, 0, ExpansionConfig(languages=["German"])):
        assert [message["role"] for message in request.messages] == ["user", "assistant", "user"]
        assert f"numbered from 1 to {request.num_queries}" in request.messages[-1]["content"]
        assert request.origin and "{query}" not in request.messages[-1]["content"]


def test_plan_round_never_rewords_what_was_reworded() -> None:
    config = ExpansionConfig(shares={"rephrase": 1, "translate": 1}, languages=["German"])
    known = [KNOWN[0], make_query("Again?", kind="rephrase"), make_query("Noch mal?", kind="translate")]
    assert {request.origin for request in plan_round(P, known, 500, 0, 0, config)} == {(KNOWN[0].id,)}


def test_plan_round_without_any_possible_kind_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"rephrase.*need queries"):
        plan_round(P, [], 10, 0, 0, ExpansionConfig(shares={"rephrase": 1}))


@pytest.mark.parametrize(
    "values",
    [
        {"shares": {"question": -1}},
        {"shares": {}},
        {"shares": {"poem": 1}},
        {"shares": {"translate": 1}},
        {"near_threshold": 0.2},
        {"queries_per_request": 0},
        {"temperature": 3},
    ],
)
def test_expansion_config_refuses(values: dict) -> None:
    assert find_faults(ExpansionConfig, values, "test")


def test_shipped_prompts_have_pieces() -> None:
    configs = Path(__file__).parents[2] / "jobs/configs"
    for path in (configs / "analyst.prompt.md", configs / "triage.prompt.json"):
        kinds = Counter(piece.kind for piece in cut_prompt(load_prompt(path)))
        assert kinds["section"] >= 1 and kinds["rule"] >= 5, path
