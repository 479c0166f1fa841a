"""Ids of rows: what determines an answer determines its id, and nothing else does."""

from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.answers import answer_id, row_seed, turn_id
from raydistill.core.idset import ID_DIGITS, pack_ids, unpack_ids
from raydistill.core.records import digest

ROWS = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3), st.integers(0, 12), st.integers(0, 3)), max_size=12)


@given(ROWS)
def test_different_rows_have_different_ids_and_equal_ones_the_same(rows: list[tuple[str, str, int, int]]) -> None:
    ids = {}
    for query, fingerprint, sample_index, turn in rows:
        identifier = answer_id(digest(query), digest(fingerprint), sample_index)
        assert unpack_ids(pack_ids([identifier])) == [identifier]
        assert turn_id(identifier, turn)[:ID_DIGITS] == identifier
        ids[query, fingerprint, sample_index, turn] = turn_id(identifier, turn)
    assert len(set(ids.values())) == len(set(rows)) == len(ids)
    seeds = {identifier: row_seed(identifier) for identifier in ids.values()}
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert len(set(seeds.values())) == len(seeds)
