"""Which rows are asked: any choice is a prefix of a larger one, and what is done is left out."""

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.answers import answer_id
from raydistill.core.errors import ConfigError
from raydistill.core.idset import pack_ids
from raydistill.core.records import Query, digest
from raydistill.teacher import rows
from raydistill.teacher.rows import choose_rows, find_rows, object_rows, read_requests, write_requests


def make_queries(number: int) -> list[Query]:
    return [Query(digest([text]), [{"role": "user", "content": text}]) for text in map(str, range(number))]


def index(queries: list[Query]) -> np.ndarray:
    return np.unique(pack_ids(query.id for query in queries))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 5), st.data())
def test_a_larger_number_only_adds_and_all_are_asked_once_before_any_twice(num_queries, num_samples, seed, data):
    queries = make_queries(num_queries)
    large = data.draw(st.integers(1, num_queries * num_samples))
    small = data.draw(st.integers(1, large))
    few, many = (choose_rows(index(queries), number, num_samples, seed, "f") for number in (small, large))
    assert (few.num_rows, many.num_rows) == (small, large)
    assert set(few.row_ids().tolist()) <= set(many.row_ids().tolist())
    assert max(many.num_samples) - min(many.num_samples) <= 1


@given(st.integers(1, 40), st.integers(1, 3), st.data())
def test_rows_are_the_chosen_ones_that_are_not_done_each_once(num_queries, num_samples, data):
    queries = make_queries(num_queries)
    number = data.draw(st.integers(1, num_queries * num_samples))
    choice = choose_rows(index(queries), number, num_samples, 0, "f")
    done = np.sort(data.draw(st.permutations(choice.row_ids().tolist()))[: data.draw(st.integers(0, number))])
    found = list(find_rows([*queries, *queries[:3]], choice, done.astype("S16")))
    assert len(found) == number - len(done)
    assert {row["id"] for row in found} == {answer_id(row["query_id"], "f", row["sample_index"]) for row in found}
    assert not set(pack_ids(row["id"] for row in found).tolist()) & set(done.tolist())


def test_ids_of_rows_are_made_in_little_memory():
    ids = np.unique(np.frombuffer(np.random.default_rng(0).bytes(16 * 60_000), dtype="S16"))
    choice = choose_rows(ids, 100_000, 2, seed=0, fingerprint="f")
    tracemalloc.start()
    try:
        row_ids = choice.row_ids()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(row_ids)) == 100_000
    assert peak < 60 * 100_000, "as texts they take 230 bytes a row"


def test_another_seed_is_another_order():
    ids = index(make_queries(200))
    chosen = [set(np.flatnonzero(choose_rows(ids, 50, 1, seed, "f").num_samples)) for seed in range(4)]
    overlaps = [len(chosen[0] & other) for other in chosen[1:]]
    assert all(2 <= overlap <= 25 for overlap in overlaps), overlaps  # 12.5 of 50 expected by chance


def test_too_few_queries_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="7 were asked for, but 3 queries x num_samples=2 give 6"):
        choose_rows(index(make_queries(3)), 7, 2, 0, "f")


@pytest.mark.parametrize(
    ("num_rows", "num_actors", "smallest", "rows"),
    [(200, 2, 64, 50), (1, 2, 64, 1), (1_000_000, 2, 64, 10_000), (10_000, 2, 64, 313), (65, 1, 64, 33)],
)
def test_objects_are_even(num_rows, num_actors, smallest, rows):
    assert object_rows(num_rows, num_actors, smallest) == rows


def test_request_objects_hold_every_row_once(tmp_path: Path):
    queries = make_queries(10)
    choice = choose_rows(index(queries), 15, 2, 0, "f")
    names = write_requests(find_rows(queries, choice, pack_ids([])), 4, str(tmp_path))
    assert len(names) == 4
    found = [row for name in names for row in read_requests(str(tmp_path), name)]
    assert Counter(row["query_id"] for row in found) == {
        query.id: choice.num_samples[place] for place, query in enumerate(sorted(queries, key=lambda item: item.id))
    }
    assert rows.LARGEST_OBJECT == 10_000


def test_large_rows_are_held_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    queries = make_queries(10)
    monkeypatch.setattr(rows, "LARGEST_CHARS", 1)
    choice = choose_rows(index(queries), 20, 2, 0, "f")
    names = write_requests(find_rows(queries, choice, pack_ids([])), 10_000, str(tmp_path))
    assert len(names) == 20
    assert len({row["id"] for name in names for row in read_requests(str(tmp_path), name)}) == 20
    held: list[int] = []  # how many queries are taken before the first row of each comes
    stream = iter(find_rows((held.append(1) or query for query in queries), choice, pack_ids([])))
    next(stream)
    assert len(held) == 1
