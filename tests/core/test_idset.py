"""Packed ids: nothing that a Python set would say differs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.idset import contains, find_positions, pack_ids, unpack_ids

IDS = st.lists(st.binary(min_size=16, max_size=16) | st.sampled_from([b"\0" * 16, b"\1" + b"\0" * 15, b"\xff" * 16]))


@given(IDS, IDS)
def test_membership_is_that_of_a_set(known: list[bytes], asked: list[bytes]):
    packed = np.unique(pack_ids(item.hex() for item in known))
    assert len(packed) == len(set(known))
    assert contains(packed, pack_ids(item.hex() for item in asked)).tolist() == [item in known for item in asked]


@given(IDS)
def test_packing_keeps_every_id_in_its_place(ids: list[bytes]):
    texts = [item.hex() for item in ids]
    packed = pack_ids(texts)
    assert unpack_ids(packed) == texts
    ordered = np.unique(packed)
    assert [ordered[place] for place in find_positions(ordered, packed)] == packed.tolist()
