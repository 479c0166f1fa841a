"""Reading queries: every bad line is named, repeated ones are merged and counted."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.errors import ConfigError
from raydistill.core.records import Query, digest
from raydistill.queries.read import count_merged, read_queries
from raydistill.queries.split import is_held_out, normalise, split_queries
from tests.jsonl import write_jsonl


def query(text: str) -> Query:
    messages = [{"role": "user", "content": text}]
    return Query(digest(messages), messages)


def test_read_queries_takes_text_and_messages(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    path = write_jsonl(tmp_path / "q.jsonl", {"text": "hello", "sector": "bank"}, "", {"messages": turns})
    found = read_queries(path)
    assert [item.messages for item in found] == [[{"role": "user", "content": "hello"}], turns]
    assert found[0].id == digest(found[0].messages)
    assert found[0].metadata == {"sector": "bank"}


def test_read_queries_keeps_line_separators_inside_a_text(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    line = json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False)
    path.write_text(line, encoding="utf-8")  # without a last newline, as editors may leave it
    assert read_queries(path)[0].messages[0]["content"] == "one\u2028two\x85three"


def test_read_queries_merges_exact_duplicates_and_counts_them(tmp_path: Path) -> None:
    same = {"messages": [{"role": "user", "content": "a"}]}
    path = write_jsonl(tmp_path / "q.jsonl", {"text": "a"}, {"text": "b"}, same, {"text": "a"}, {"text": "A"})
    found = read_queries(path)
    assert [item.messages[0]["content"] for item in found] == ["a", "b", "A"]
    assert count_merged(found) == 2


def test_read_queries_names_every_bad_line(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "q.jsonl",
        {"text": "fine"},
        "{not json",
        '"a string"',
        {"text": "  "},
        {"text": "a", "messages": []},
        {"other": 1},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        '{"text": "\\ud800"}',
        {"text": 7},
    )
    with pytest.raises(ConfigError) as caught:
        read_queries(path)
    message = str(caught.value)
    assert str(path) in message
    for number in range(2, 11):
        assert f"line {number}:" in message
    assert "line 1:" not in message


def test_read_queries_names_bad_utf8(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(ConfigError, match="line 1: not UTF-8"):
        read_queries(path)


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_read_queries_refuses_missing_and_empty_files(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "q.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"does not exist|holds no queries"):
        read_queries(path)


def test_split_queries_holds_out_about_the_share_whatever_else_is_there() -> None:
    queries = [query(f"question number {index}") for index in range(2000)]
    training, held_out = split_queries(queries, 0.2)
    assert len(training) + len(held_out) == 2000
    assert 320 < len(held_out) < 480
    assert split_queries(queries[::-3], 0.2)[1] == [item for item in queries[::-3] if item in held_out]


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), min_size=1)), st.floats(0, 1))
def test_split_queries_puts_every_query_on_one_side_that_depends_on_it_alone(texts: list[str], share: float) -> None:
    queries = [query(text) for text in texts]
    training, held_out = split_queries(iter(queries), share)
    assert not {item.id for item in training} & {item.id for item in held_out}
    assert [item for item in queries if is_held_out(item, share)] == held_out
    assert [item for item in queries if not is_held_out(item, share)] == training


def test_split_queries_at_the_ends() -> None:
    queries = [query("a"), query("b")]
    assert split_queries(queries, 0.0) == (queries, [])
    assert split_queries(queries, 1.0) == ([], queries)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_split_queries_puts_near_copies_on_one_side(text: str) -> None:
    variant = query(f"  {text.replace(' ', chr(9) + ' ')} ")
    assert normalise(query(text)) == normalise(variant)
    assert bool(split_queries([query(text)])[1]) == bool(split_queries([variant])[1])
