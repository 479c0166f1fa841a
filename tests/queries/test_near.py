"""Near duplicates: found in several languages, kept by the smallest id, whatever the order of the rows."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.core.errors import ConfigError, StorageError
from raydistill.core.records import DROP_REASONS, Query, digest
from raydistill.queries import near
from raydistill.queries.near import NearIndex, find_near_duplicates, to_drop
from raydistill.queries.sketch import find_shingles
from tests.queries.sources import make_query

ALIKE = [
    (
        "Where is my parcel? It should have been here on Tuesday.",
        "where is my parcel? It should have been here Tuesday",
    ),
    ("I was charged twice for my order.", "Hi, I was charged twice for my order."),
    ("How do I reset my password?", "How do I reset  my pasword?"),
    ("我的包裹在哪里？应该星期二就到了。", "请问我的包裹在哪里?应该星期二就到了。"),
    ("パスワードを再設定するにはどうすればいいですか？", "パスワードを再設定するにはどうすればいいですか"),
    ("ฉันจะรีเซ็ตรหัสผ่านได้อย่างไร", "ฉันจะรีเซ็ตรหัสผ่านได้อย่างไรคะ"),
]
UNLIKE = [
    ("How do I reset my password?", "How do I change my email address?"),
    ("The app crashes when I open the settings page.", "The app freezes when I open the camera page."),
    ("What is the price of the XK-200?", "What is the price of the XK-300?"),
    ("2 + 2", "2 + 3"),
    ("我的包裹在哪里？应该星期二就到了。", "我的退款在哪里？上周就应该到了。"),
    ("a", "b"),
]
WORDS = ["parcel", "order", "account", "camera", "lamp", "invoice", "refund", "school", "price", "box", "night", "day"]


def similarity(first: Query, second: Query) -> float:
    one, two = set(find_shingles(first)), set(find_shingles(second))
    return len(one & two) / len(one | two)


def make_texts(rng: random.Random, num_texts: int) -> list[Query]:
    """Return sentences of which about half are another one with a word changed."""
    queries: list[Query] = []
    for _ in range(num_texts):
        words = rng.choices(WORDS, k=12)
        if queries and rng.random() < 0.5:
            words = rng.choice(queries).messages[0]["content"].split()
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        queries.append(make_query(" ".join(words)))
    return queries


@pytest.mark.parametrize(("one", "other"), ALIKE, ids=range(len(ALIKE)))
def test_texts_that_are_alike_are_found(one: str, other: str) -> None:
    pair = sorted([make_query(one), make_query(other)], key=lambda query: query.id)
    (found,) = find_near_duplicates(pair, 0.7)
    assert (found.id, found.kept_id) == (pair[1].id, pair[0].id)
    assert abs(found.similarity - similarity(*pair)) < 0.12  # three standard deviations of the estimate
    drop = to_drop(found)
    assert drop.query_id == pair[1].id and drop.reason in DROP_REASONS and pair[0].id in drop.detail


@pytest.mark.parametrize(("one", "other"), UNLIKE, ids=range(len(UNLIKE)))
def test_texts_that_are_not_alike_are_left(one: str, other: str) -> None:
    assert list(find_near_duplicates([make_query(one), make_query(other)], 0.7)) == []


def test_the_last_question_of_a_conversation_decides() -> None:
    def ask(history: str, question: str) -> Query:
        turns = [("user", history), ("assistant", "Certainly, go on."), ("user", question)]
        messages = [{"role": role, "content": content} for role, content in turns]
        return Query(digest(messages), messages)

    story = "I moved house in May and since then nothing works as it should. " * 20
    same = [ask(story, "Where is the invoice of my order?"), ask(story.upper(), "Where is the invoice of my order")]
    assert len(list(find_near_duplicates(same, 0.7))) == 1
    assert not list(find_near_duplicates([same[0], ask(story, "Who can repair my heater today?")], 0.7))
    assert not list(find_near_duplicates([same[0], ask("Hello!", "Where is the invoice of my order?")], 0.7))
    assert not list(find_near_duplicates([same[0], make_query("Where is the invoice of my order?")], 0.7))


@settings(max_examples=10)
@given(st.randoms(use_true_random=False), st.sampled_from([0.6, 0.8, 0.9]))
def test_what_is_kept_does_not_depend_on_the_order_and_is_kept_again(rng: random.Random, threshold: float) -> None:
    queries = make_texts(rng, 50)
    found = list(find_near_duplicates(queries, threshold))
    shuffled = rng.sample(queries, len(queries)) + queries[:5]  # an id that comes again is the same query
    assert list(find_near_duplicates(shuffled, threshold)) == found
    dropped = {duplicate.id: duplicate for duplicate in found}
    by_id = {query.id: query for query in queries}
    kept = [query for query in by_id.values() if query.id not in dropped]
    assert list(find_near_duplicates(kept, threshold)) == []
    for duplicate in found:
        assert duplicate.kept_id < duplicate.id and duplicate.kept_id not in dropped
        assert similarity(by_id[duplicate.id], by_id[duplicate.kept_id]) > threshold - 0.15


def test_nearly_all_pairs_above_the_threshold_are_found() -> None:
    queries = list({query.id: query for query in make_texts(random.Random(3), 200)}.values())
    dropped = {duplicate.id for duplicate in find_near_duplicates(queries, 0.7)}
    kept = [query for query in queries if query.id not in dropped]
    missed = sum(similarity(one, two) >= 0.8 for index, one in enumerate(kept) for two in kept[:index])
    assert len(dropped) > 50 and missed <= 2


def test_a_bucket_of_many_stays_cheap_and_loses_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MAX_RIVALS", 1)
    queries = make_texts(random.Random(5), 200)
    found = list(find_near_duplicates(queries, 0.6))
    dropped = {duplicate.id for duplicate in found}
    assert found and not dropped & {duplicate.kept_id for duplicate in found}
    assert list(find_near_duplicates([query for query in queries if query.id not in dropped], 0.6)) == []


def test_one_index_that_grows_finds_the_same() -> None:
    queries = sorted(make_texts(random.Random(7), 100), key=lambda query: query.id)
    index = NearIndex(0.7)
    unique = {query.id: query for query in queries}.values()
    grown = [duplicate for duplicate in map(index.find_or_add, unique) if duplicate is not None]
    assert grown == list(find_near_duplicates(queries, 0.7))


def test_a_full_disk_is_told_before_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "SPARE_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="TMPDIR"):
        list(find_near_duplicates([make_query("a")], 0.8))


def test_nothing_comes_of_nothing() -> None:
    assert list(find_near_duplicates([], 0.8)) == []
    assert list(find_near_duplicates([make_query("a")], 0.8)) == []


@pytest.mark.parametrize("threshold", [0.0, 0.49, 1.0, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        list(find_near_duplicates([], threshold))
