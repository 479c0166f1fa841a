"""The index of a source: counts, duplicates and examples, and nothing else stays in memory."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.errors import ConfigError
from raydistill.core.records import Query, digest
from raydistill.queries.index import MAX_ROLE_SEQUENCES, iter_unique, scan_queries
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
    assert (index.num_rows, index.num_merged, index.num_queries) == (6, 3, 3)
    assert index.is_repeated_R.tolist() == [False, False, True, False, True, True]
    assert [index.id_at(row) for row in range(6)] == [query.id for query in queries]
    assert list(iter_unique(queries, index)) == [queries[0], queries[1], queries[3]]
    assert index.shortest == queries[1]
    assert index.sample == sorted(iter_unique(queries, index), key=lambda query: query.id)


def test_rows_with_marks_what_is_to_be_left_out() -> None:
    queries = [make_query(str(number)) for number in range(300)] * 2
    index = scan_queries(queries)
    dropped = [query.id for query in queries[:300:7]]
    is_dropped_R = index.rows_with(dropped)
    assert is_dropped_R.tolist() == [query.id in dropped for query in queries]
    assert list(iter_unique(queries, index, is_dropped_R)) == [q for q in queries[:300] if q.id not in dropped]
    assert not index.rows_with([]).any()


@given(st.lists(st.sampled_from([make_query(str(number)) for number in range(12)]), min_size=1), st.randoms())
def test_scan_queries_merges_alike_in_any_order(queries: list[Query], rng: random.Random) -> None:
    index = scan_queries(queries, sample_size=5)
    shuffled = rng.sample(queries, len(queries))
    other = scan_queries(shuffled, sample_size=5)
    unique = {query.id for query in queries}
    assert index.num_queries == other.num_queries == len(unique)
    assert (index.sample, index.shortest) == (other.sample, other.shortest)
    assert [query.id for query in index.sample] == sorted(unique)[:5]
    kept = list(iter_unique(queries, index))
    assert {query.id for query in kept} == {query.id for query in iter_unique(shuffled, other)} == unique
    assert scan_queries(kept).num_merged == 0


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


def test_iter_unique_refuses_a_source_that_was_changed() -> None:
    queries = [make_query(text) for text in "abc"]
    index = scan_queries(queries)
    for changed in (queries[:2], [*queries, make_query("d")], [queries[0], make_query("B"), queries[2]]):
        with pytest.raises(ConfigError, match="was changed"):
            list(iter_unique(changed, index))


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
    assert index.ids_R2.nbytes + index.is_repeated_R.nbytes <= 24 * index.num_rows
    # Beside the file's buffer columns of numbers and the examples, 300 KB; as Queries these rows take 3 MB.
    assert peak_bytes - BUFFER_BYTES < 1_000_000


def test_user_turns_are_the_indices_of_the_users_messages() -> None:
    assert user_turns(make_query("a")) == [0]
    assert user_turns(make_conversation("system", "user", "assistant", "user")) == [1, 3]


def test_queries_may_come_from_a_generator() -> None:
    def generate() -> Iterator[Query]:
        yield from (make_query(str(number)) for number in range(3))

    assert len(list(iter_unique(generate(), scan_queries(generate())))) == 3
