"""The index of a source: counts, duplicates and examples, and nothing else stays in memory."""

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.errors import ConfigError
from raydistill.core.idset import unpack_ids
from raydistill.core.records import Query, digest
from raydistill.queries.index import MAX_ROLE_SEQUENCES, scan_queries
from raydistill.queries.lines import BUFFER_BYTES
from raydistill.queries.read import iter_queries
from raydistill.queries.rows import user_turns
from tests.jsonl import write_jsonl
from tests.queries.sources import make_query


def make_conversation(*roles: str) -> Query:
    messages = [{"role": role, "content": "x"} for role in roles]
    return Query(digest(messages), messages)


def test_scan_queries_finds_what_stands_there_twice() -> None:
    queries = [make_query(text) for text in ("aa", "b", "aa", "ccc", "b", "aa")]
    index = scan_queries(queries)
    assert (index.num_rows, index.num_merged) == (6, 3)
    unique = sorted((queries[0], queries[1], queries[3]), key=lambda query: query.id)
    assert unpack_ids(index.ids) == [query.id for query in unique]
    assert index.shortest == queries[1]
    assert index.sample == unique


@given(st.lists(st.sampled_from([make_query(str(number)) for number in range(12)]), min_size=1), st.randoms())
def test_scan_queries_merges_alike_in_any_order(queries: list[Query], rng: random.Random) -> None:
    index = scan_queries(queries, sample_size=5)
    shuffled = rng.sample(queries, len(queries))
    other = scan_queries(shuffled, sample_size=5)
    unique = {query.id for query in queries}
    assert unpack_ids(index.ids) == unpack_ids(other.ids) == sorted(unique)
    assert (index.sample, index.shortest) == (other.sample, other.shortest)
    assert [query.id for query in index.sample] == sorted(unique)[:5]
    assert index.num_merged == len(queries) - len(unique)


def test_scan_queries_keeps_one_example_of_each_sequence_of_roles() -> None:
    first, second = make_query("a"), make_conversation("user", "assistant", "user")
    index = scan_queries([first, make_query("b"), second])
    assert index.role_examples == {("user",): first, ("user", "assistant", "user"): second}
    many = [make_conversation(*["user"] * count) for count in range(1, 100)]
    assert len(scan_queries(many).role_examples) == MAX_ROLE_SEQUENCES


def test_scan_queries_raises_what_reading_found(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", {"text": "a"}, "{", {"text": "b"})
    with pytest.raises(ConfigError, match="line 2"):
        scan_queries(iter_queries(path))
    with pytest.raises(ConfigError, match="none are left"):
        scan_queries([])


def test_a_source_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    with path.open("w") as file:
        for number in range(4_000):
            file.write(f'{{"text": "question {number}", "id": "row-{number}"}}\n')
    small = scan_queries(iter_queries(path))  # what is loaded once is loaded now
    tracemalloc.start()
    index = scan_queries(iter_queries(path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.num_rows == small.num_rows == 4_000
    assert index.ids.nbytes == 16 * index.num_rows
    # Beside the file's buffer columns of numbers and the examples, 300 KB; as Queries these rows take 3 MB.
    assert peak_bytes - BUFFER_BYTES < 1_000_000


def test_user_turns_are_the_indices_of_the_users_messages() -> None:
    assert user_turns(make_query("a")) == [0]
    assert user_turns(make_conversation("system", "user", "assistant", "user")) == [1, 3]


def test_there_may_be_none_where_the_teacher_writes_some() -> None:
    index = scan_queries(iter(()), may_be_empty=True)
    assert (index.num_rows, len(index.ids), index.sample, index.shortest) == (0, 0, [], None)
