"""Near copies are found whatever order answers come in, and the one with the smallest id stays."""

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.dataset.similar import NearCopies

LETTERS = random.Random(0)
WORDS = ["".join(LETTERS.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(2000)]


def make_text(seed: int, changed: int = 0, num_words: int = 120) -> str:
    """Return a text of its own for each seed, or a copy of that in which some words are others."""
    words = random.Random(seed).choices(WORDS, k=num_words)
    chance = random.Random(f"{seed} {changed}")
    for position in chance.sample(range(num_words), changed):
        words[position] = f"changed{chance.random()}"[:9]
    return " ".join(words)


def find(texts: dict[str, str], threshold: float, order: list[str] | None = None, per_table: int = 3) -> dict[str, str]:
    copies = NearCopies(threshold)
    ids = order if order is not None else list(texts)
    for start in range(0, len(ids), per_table):
        some = ids[start : start + per_table]
        copies.add(pa.table({"id": some, "response": [texts[name] for name in some]}))
    return copies.find()


def jaccard(one: str, other: str) -> float:
    first, second = ({text[at : at + 5] for at in range(len(text) - 4)} for text in (one, other))
    return len(first & second) / len(first | second)


def test_near_copies_are_found_and_the_smallest_id_stays() -> None:
    texts = {"m": make_text(1, 2), "b": make_text(1), "z": make_text(1, 1), "a": make_text(2), "q": make_text(3)}
    found = find(texts, 0.8)
    assert found.keys() == {"m", "z"}
    assert found["z"].startswith("a near copy of b (similarity 0.9")


@pytest.mark.parametrize(("changed", "threshold", "is_copy"), [(2, 0.8, True), (60, 0.8, False), (8, 0.95, False)])
def test_the_threshold_decides(changed: int, threshold: float, is_copy: bool) -> None:
    texts = {"a": make_text(1), "b": make_text(1, changed)}
    assert (jaccard(texts["a"], texts["b"]) > threshold) is is_copy
    assert bool(find(texts, threshold)) is is_copy


def test_the_similarity_is_that_of_the_texts() -> None:
    for changed in (2, 5, 10, 20):
        texts = {"a": make_text(changed), "b": make_text(changed, changed)}
        (detail,) = find(texts, 0.5).values()
        estimate = float(detail.rpartition(" ")[2].rstrip(")"))
        assert estimate == pytest.approx(jaccard(texts["a"], texts["b"]), abs=0.12)  # three standard errors


def test_at_threshold_one_only_case_and_white_space_may_differ() -> None:
    texts = {"a": "Yes, we  do.\n", "b": "yes, we do.", "c": "yes, we do", "d": make_text(1), "e": make_text(1, 1)}
    assert find(texts, 1.0) == {"b": "a near copy of a (similarity 1.00)"}


def test_short_answers_are_copies_only_where_they_are_equal() -> None:
    texts = {"a": "yes", "b": "no", "c": "yes", "d": "", "e": "ja", "f": "日本", "g": "日本"}
    assert find(texts, 0.8).keys() == {"c", "g"}


def test_a_copy_of_a_copy_stays_where_it_is_no_copy_of_what_stays() -> None:
    words, others = make_text(1).split(), make_text(2).split()
    texts = {
        "a": " ".join(words),
        "b": " ".join([*others[:15], *words[15:]]),
        "c": " ".join([*others[:30], *words[30:]]),
    }
    assert jaccard(texts["a"], texts["c"]) < 0.65 < 0.75 < jaccard(texts["b"], texts["c"])
    assert find(texts, 0.7).keys() == {"b"}, "c is near b, which is dropped, and far from a, which stays"


@settings(max_examples=25)
@given(st.data())
def test_the_order_of_rows_and_the_size_of_tables_change_nothing(data) -> None:
    groups = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=10))
    names = data.draw(st.permutations([f"{index:02}" for index in range(len(groups))]))
    texts = {name: make_text(seed, changed) for name, (seed, changed) in zip(names, groups, strict=True)}
    order = data.draw(st.permutations(list(texts)))
    expected = find(texts, 0.7, sorted(texts), 100)
    assert find(texts, 0.7, order, data.draw(st.integers(1, 4))) == expected
    staying = texts.keys() - expected.keys()
    assert staying, "one of each cluster stays"
    for name, detail in expected.items():
        kept = detail.split()[4]
        assert kept in staying and kept < name


def test_nothing_has_no_copies() -> None:
    assert find({}, 0.8) == {}
    copies = NearCopies(0.8)
    copies.add(pa.table({"id": pa.array([], pa.string()), "response": pa.array([], pa.string())}))
    assert copies.find() == {}
