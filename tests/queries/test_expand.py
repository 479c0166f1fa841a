"""Expansion: answers of any form are read, only new queries are kept, and rounds go on where they ended or stall."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.errors import QualityError
from raydistill.core.prompts import Prompt
from raydistill.core.records import Query
from raydistill.queries.config import ExpansionConfig
from raydistill.queries.expand import Expansion, KnownQueries, Reply, Round, expand_queries, query_to_line, select_new
from raydistill.queries.parse import parse_expansion
from raydistill.queries.plan import ExpansionRequest, plan_round
from raydistill.queries.read import iter_queries
from tests.queries.sources import make_query

P = Prompt("system", [{"role": "system", "content": "You are the desk of a library. Lend ten books at most."}])
NAMES = [f"{first} {last}" for first in ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay") for last in ("Ash", "Cole", "Dorn")]
GIVEN = [make_query("May I bring my dog?"), make_query("Do you lend films and games to teachers?")]
(REQUEST,) = plan_round(P, GIVEN, 1, 0, 3, ExpansionConfig(shares={"question": 1}))


def texts_in(answer: str, **options: bool | int) -> list[str]:
    return [query.messages[0]["content"] for query in parse_expansion(REQUEST, answer, **options)]


@pytest.mark.parametrize(
    "answer",
    [
        "1. Is it far?\n2. Who pays?",
        "Sure! Here are 2 messages:\n\n1) Is it far?\n2) Who pays?\n\nI hope this helps!",
        "- Is it far?\n* Who pays?",
        "**1.** **Is it far?**\n**2.** Who pays?",
        '1. "Is it far?"\n2. “Who pays?”',
        "User: Is it far?\nUser: Who pays?",
        "Question 1: Is it far?\nQuestion 2: Who pays?",
        '```json\n["Is it far?", "Who pays?"]\n```',
        'Here they are: ["Is it far?", "Who pays?", ]',
        '[{"text": "Is it far?"}, {"query": "Who pays?"}]',
        '{"queries": ["Is it far?", "Who pays?"]}',
        '{"text": "Is it far?"}\n{"text": "Who pays?"}',
        '["Is it far?", "Who pays?", "and the last one is cut o',
        "Messages:\nIs it far?\nWho pays?",
        "1. Is it\n   far?\n2. Who pays?",
        "1、Is it far?\n2、Who pays?",
    ],
)
def test_parse_expansion_reads_lists_of_every_form(answer: str) -> None:
    assert texts_in(answer) == ["Is it far?", "Who pays?"]


def test_parse_expansion_notes_where_a_query_comes_from() -> None:
    (query,) = parse_expansion(REQUEST, "1. Is it far?")
    assert query == make_query("Is it far?", kind="question", origin=list(REQUEST.origin), round=3)
    assert REQUEST.origin[0] == "P: section 1" and {*REQUEST.origin[1:]} == {query.id for query in GIVEN}


def test_parse_expansion_leaves_out_what_is_no_query() -> None:
    asked = REQUEST.messages[-1]["content"].splitlines()[-1]
    lines = ["Is it far?", "", "...", "x" * 50, asked, "May I bring my dog?", "half a character \ufffd", "\ud800 half"]
    answer = "\n".join(f"{number}. {line}" for number, line in enumerate(lines))
    assert texts_in(answer, max_query_chars=40) == ["Is it far?"]
    assert texts_in("1. Is it far?\n2. Who pa", truncated=True) == ["Is it far?"]
    assert texts_in("I cannot do that:") == texts_in("") == texts_in("```\n```") == []


def test_parse_expansion_keeps_numbers_and_quotes_inside_a_query() -> None:
    kept = ['Is "ten" the limit, or "twelve"?', "1.5 million books, is that right?", "What is [sic]?"]
    assert texts_in("\n".join(kept)) == kept
    assert texts_in("\n".join(f"{number}. {text}" for number, text in enumerate(kept, start=1))) == kept


@given(st.text() | st.lists(st.text() | st.none() | st.dictionaries(st.text(), st.text())).map(json.dumps))
def test_parse_expansion_takes_anything(answer: str) -> None:
    for query in parse_expansion(REQUEST, answer):
        assert query.messages[0]["content"].encode().strip()


def test_select_new_compares_with_everything_known_and_with_one_another() -> None:
    known = KnownQueries(GIVEN, 0.7)
    candidates = [
        make_query(text) for text in ("may i bring  my dog?", "May I bring my dogs?", "Who pays?", "who pays?")
    ]
    kept, rejected = select_new(candidates, known)
    assert kept == [candidates[2]]
    assert [reason for _, reason in rejected] == ["duplicate", "near_duplicate", "duplicate"]
    assert select_new(kept, known) == ([], [(candidates[2], "duplicate")])


class Teacher:
    """Writes a question that depends on the request and one that is always the same, and remembers the requests."""

    def __init__(self, num_texts: int = 1000) -> None:
        self.requests: list[ExpansionRequest] = []
        self.num_texts = num_texts

    def ask(self, requests: list[ExpansionRequest]) -> Sequence[Reply]:
        self.requests += requests
        return [Reply(self._write(int(request.id, 16))) for request in requests]

    def _write(self, number: int) -> str:
        name, other = NAMES[number % self.num_texts % len(NAMES)], NAMES[number // 97 % self.num_texts % len(NAMES)]
        return f"1. Is {name} a friend of {other}?\n2. Are dogs allowed?"


def expand(teacher: Teacher, written: list[Query], num_wanted: int, **changes: int) -> list[Round]:
    config = ExpansionConfig(queries_per_request=2, requests_per_round=5, near_threshold=0.9, **changes)
    return list(expand_queries(Expansion(P, GIVEN, 0, config), written, num_wanted, teacher.ask))


def test_expand_queries_ends_when_there_are_enough() -> None:
    rounds = expand(Teacher(), [], 12)
    written = [query for found in rounds for query in found.kept]
    assert 12 <= len(written) < 12 + 5 and len({query.id for query in written}) == len(written)
    assert [found.index for found in rounds] == list(range(len(rounds))) and len(rounds) > 2
    assert all(query.metadata["round"] == found.index for found in rounds for query in found.kept)
    assert rounds[0].rejected["duplicate"] == 4  # five answers say "Are dogs allowed?"
    assert expand(Teacher(), written, 12) == []


def test_expand_queries_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    whole, first, second = Teacher(), Teacher(), Teacher()
    rounds = expand(whole, [], 15)
    path = tmp_path / "expanded.jsonl"
    config = ExpansionConfig(queries_per_request=2, requests_per_round=5, near_threshold=0.9)
    for found in expand_queries(Expansion(P, GIVEN, 0, config), [], 15, first.ask):
        with path.open("a") as file:
            file.writelines(query_to_line(query) for query in found.kept)
        if found.index == 1:
            break
    written = list(iter_queries(path))
    assert written == [query for found in rounds[:2] for query in found.kept]
    assert expand(second, written, 15) == rounds[2:]
    assert first.requests + second.requests == whole.requests


def test_expand_queries_never_brings_back_what_is_held_out() -> None:
    config = ExpansionConfig(queries_per_request=2, requests_per_round=5, near_threshold=0.9)
    first = [query for found in expand(Teacher(), [], 5) for query in found.kept]
    teacher = Teacher()
    expansion = Expansion(P, GIVEN, 0, config)
    rounds = list(expand_queries(expansion, [], 5, teacher.ask, others=first))
    assert not {query.id for query in first} & {query.id for found in rounds for query in found.kept}
    assert not any(query.id in request.origin for request in teacher.requests for query in first)


def test_expand_queries_that_stalls_says_both_numbers() -> None:
    with pytest.raises(QualityError, match=r"100 more queries are needed, the teacher wrote 2 that are new.*2 rounds"):
        expand(Teacher(num_texts=1), [], 100, idle_rounds=2)
    with pytest.raises(QualityError, match=r"100 more queries .* wrote 0 .*20 unparsable"):
        silent = Teacher()
        silent.ask = lambda requests: [Reply("")] * len(requests)  # type: ignore[method-assign]
        config = ExpansionConfig(requests_per_round=20, queries_per_request=1)
        list(expand_queries(Expansion(P, GIVEN, 0, config), [], 100, silent.ask))
    with pytest.raises(QualityError, match=r"wrote 0 .*\(20 failed; the last error: no room\)"):
        list(expand_queries(Expansion(P, GIVEN, 0, config), [], 100, lambda asked: [Reply("", error="no room")] * 20))
    with pytest.raises(QualityError, match=r"1000 more queries are needed.*expand\.max_rounds=2"):
        expand(Teacher(), [], 1000, max_rounds=2)
