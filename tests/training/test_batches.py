import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.training.batches import (
    EncodedRow,
    micro_batches,
    pack,
    plan_steps,
    rows_digest,
    rows_of_step,
    share_rows,
)


def _rows(lengths: list[tuple[int, int]]) -> list[EncodedRow]:
    return [EncodedRow(f"r{i}", [i] * prompt, [i + 1] * response) for i, (prompt, response) in enumerate(lengths)]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(num_rows, batch_size, num_epochs, seed):
    plan = plan_steps(num_rows, batch_size, num_epochs, None, seed)
    seen = [index for step in range(plan.num_steps) for index in rows_of_step(plan, step)]
    assert len(seen) == num_rows * num_epochs
    for epoch in range(num_epochs):
        assert sorted(seen[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    assert all(len(rows_of_step(plan, step)) == batch_size for step in range(plan.num_steps - 1))


def test_plan_is_cut_off_when_max_steps_is_smaller():
    assert plan_steps(200, 8, 4, None, 0).num_steps == 100
    assert plan_steps(200, 8, 4, 30, 0).num_steps == 30
    assert plan_steps(10, 8, 1, 30, 0).num_steps == 2


def test_order_differs_between_epochs_and_seeds():
    plan, other = plan_steps(30, 30, 2, None, 0), plan_steps(30, 30, 2, None, 1)
    assert rows_of_step(plan, 0) == rows_of_step(plan_steps(30, 30, 2, None, 0), 0)
    assert len({tuple(rows_of_step(plan, 0)), tuple(rows_of_step(plan, 1)), tuple(rows_of_step(other, 0))}) == 3


@given(st.integers(1, 20), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(1, 5))
def test_generic_rows_join_in_turn_and_change_nothing_about_the_others(num_rows, batch_size, share, num_generic):
    plain = plan_steps(num_rows, batch_size, 3, None, 0)
    plan = dataclasses.replace(plain, num_generic=num_generic, retain_fraction=share)
    steps = [rows_of_step(plan, step) for step in range(plan.num_steps)]
    assert [[index for index in step if index < num_rows] for step in steps] == [
        rows_of_step(plain, step) for step in range(plan.num_steps)
    ]
    joined = [index - num_rows for step in steps for index in step if index >= num_rows]
    assert joined == [turn % num_generic for turn in range(len(joined))]
    assert abs(len(joined) - share * batch_size * plan.num_steps) < 1


lengths = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=12)


@given(lengths, st.integers(1, 4), st.sampled_from([None, 1, 2, 5]), st.sampled_from([1, 2048, 8192]))
def test_workers_share_a_step_without_loss_and_in_equally_many_micro_batches(
    sizes, num_workers, micro_batch_size, pack_tokens
):
    rows = _rows(sizes)
    batches = [micro_batches(rows, rank, num_workers, micro_batch_size, pack_tokens) for rank in range(num_workers)]
    assert len({len(own) for own in batches}) == 1
    targets = Counter(token for own in batches for packed in own for token in packed.targets_N)
    assert targets == Counter({i + 1: response for i, (_, response) in enumerate(sizes)})
    longest = max(prompt + response for prompt, response in sizes)
    for packed in (packed for own in batches for packed in own):
        assert len(packed.tokens_T) <= max(pack_tokens, longest)
        assert len(set(packed.rows_T)) <= (micro_batch_size or len(rows))


def test_shares_are_balanced_by_tokens_not_by_rows():
    shares = share_rows(_rows([(50, 50), (1, 9), (1, 9), (1, 9), (60, 30)]), 2)
    assert sorted(sum(row.num_tokens for row in share) for share in shares) == [110, 110]


@pytest.mark.parametrize(("pack_tokens", "packs"), [(100, 8), (2048, 4), (8192, 1)])
def test_packs_are_as_long_as_they_may_be(pack_tokens, packs):
    """8,192 tokens in eight rows."""
    found = micro_batches(_rows([(512, 512)] * 8), 0, 1, None, pack_tokens)
    assert len(found) == packs and sum(len(packed.tokens_T) for packed in found) == 8192


def test_packed_positions_restart_and_keep_what_predicts_the_response():
    packed = pack([EncodedRow("a", [10, 11], [12, 13]), EncodedRow("b", [20], [21])])
    assert packed.tokens_T == [10, 11, 12, 13, 20, 21]
    assert packed.positions_T == [0, 1, 2, 3, 0, 1]
    assert packed.rows_T == [0, 0, 0, 0, 1, 1]
    assert packed.keep_N == [1, 2, 4]
    assert packed.targets_N == [12, 13, 21]
    assert pack([EncodedRow("a", [10], [12])], scored=False).targets_N == []


@pytest.mark.parametrize(
    "other",
    [
        EncodedRow("b", [1], [2]),
        EncodedRow("a", [1, 2], []),
        EncodedRow("a", [], [1, 2]),
        EncodedRow("a", [1], [3]),
        EncodedRow("a", [1], [2], teacher_tokens=[1]),
        EncodedRow("a", [1], [2], top_ids=np.array([[1]]), top_logprobs=np.array([[0.0]])),
    ],
)
def test_rows_digest_changes_when_a_row_does(other):
    row = EncodedRow("a", [1], [2])
    assert rows_digest([row]) == rows_digest([EncodedRow("a", [1], [2])])
    assert rows_digest([row]) != rows_digest([other])
    assert rows_digest([row, other]) != rows_digest([other, row])
    assert rows_digest([row], [7]) != rows_digest([row])
