"""Soft labels as arrays and as Arrow and Parquet columns."""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.answers import answer_from_row, answer_schema, answer_to_row, answers_from_table, answers_to_table
from raydistill.core.records import Answer, Usage
from raydistill.core.topk import (
    LOWEST_LOGPROB,
    PADDING_ID,
    from_column,
    pack_top,
    parquet_options,
    read_rows,
    to_column,
    top_fields,
)


def make_answer(name: str, num_tokens: int, k: int | None) -> Answer:
    rng = np.random.default_rng(num_tokens)
    ids = logprobs = None
    if k is not None:
        ids = rng.integers(0, 49152, (num_tokens, k), dtype=np.int32)
        logprobs = -np.sort(rng.exponential(4, (num_tokens, k)), axis=1).astype(np.float16)
    tokens, usage = list(range(num_tokens)), Usage(10, 6, num_tokens)
    return Answer(
        id=name,
        query_id=f"q{name}",
        sample_index=0,
        turn=0,
        messages=[{"role": "user", "content": name}],
        text=name,
        tokens=tokens,
        finish_reason="stop",
        usage=usage,
        latency_seconds=0.5,
        top_ids=ids,
        top_logprobs=logprobs,
    )


def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)


def test_pack_top_takes_the_first_entries_of_each_position() -> None:
    ids, logprobs = pack_top([9, 1, 2, 3, 9, 4, 5, 6], [-9, -0.5, -1, -2, -9, -0.25, -3, -4], [1, 5], [4, 8], 2)
    assert ids.tolist() == [[1, 2], [4, 5]]
    assert logprobs.tolist() == [[-0.5, -1], [-0.25, -3]]
    assert (ids.dtype, logprobs.dtype) == (np.int32, np.float16)


def test_pack_top_pads_short_positions_with_no_probability() -> None:
    ids, logprobs = pack_top([1, 2, 3], [0.0, -1.0, -2.0], [0, 1, 3], [1, 3, 3], 2)
    assert ids.tolist() == [[1, PADDING_ID], [2, 3], [PADDING_ID, PADDING_ID]]
    assert logprobs.tolist() == [[0, LOWEST_LOGPROB], [-1, -2], [LOWEST_LOGPROB, LOWEST_LOGPROB]]
    assert np.exp(logprobs.astype(np.float64))[ids < 0].sum() == 0


def test_pack_top_clamps_what_float16_cannot_hold() -> None:
    _, logprobs = pack_top([1, 2, 3, 4], [1e-6, -65519.0, -1e30, -np.inf], [0], [4], 4)
    assert logprobs.tolist() == [[0, LOWEST_LOGPROB, LOWEST_LOGPROB, LOWEST_LOGPROB]]
    assert np.isfinite(logprobs).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.5])
def test_pack_top_refuses_what_is_no_log_probability(bad: float) -> None:
    with pytest.raises(ValueError, match="position 1 of the answer"):
        pack_top([1, 2, 3, 4], [-1.0, -2.0, -1.0, bad], [0, 2], [2, 4], 2)


def test_pack_top_ignores_what_it_leaves_out() -> None:
    assert pack_top([1, 2], [-1.0, np.nan], [0], [2], 1)[1].tolist() == [[-1]]


@given(st.lists(st.none() | st.integers(0, 7), max_size=12), st.integers(1, 20), st.integers(0, 12))
def test_columns_give_back_their_arrays_also_sliced_and_in_chunks(lengths, k, cut) -> None:
    rng = np.random.default_rng(k)
    for field, kind in zip(top_fields(k), (np.int32, np.float16), strict=True):
        arrays = [None if length is None else (rng.random((length, k)) * -9).astype(kind) for length in lengths]
        column = to_column(arrays, field)
        assert column.type == field.type
        halves = pa.chunked_array([column.slice(0, cut), column.slice(cut)])
        assert all(map(same, from_column(halves), arrays))


def test_to_column_refuses_another_k() -> None:
    with pytest.raises(ValueError, match=r"top_ids: an array of shape \(3, 4\), where 5"):
        to_column([np.zeros((3, 4), dtype=np.int32)], top_fields(5)[0])


def test_answers_survive_parquet_with_their_types() -> None:
    answers = [make_answer("a", 3, 20), make_answer("b", 300, 20), make_answer("c", 0, None)]
    table = answers_to_table([answer_to_row(answer) for answer in answers], 20)
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", **parquet_options(table.schema))
    read = pq.read_table(io.BytesIO(file.getvalue()))
    assert read.schema.equals(answer_schema(20))
    assert read.schema.field("top_ids").type == pa.list_(pa.list_(pa.int32(), 20))
    assert read.schema.field("top_logprobs").type == pa.list_(pa.list_(pa.float16(), 20))
    back = answers_from_table(read)
    assert back == answers
    for one, other in zip(answers, back, strict=True):
        assert same(one.top_ids, other.top_ids) and same(one.top_logprobs, other.top_logprobs)


def test_parquet_options_make_soft_labels_smaller() -> None:
    table = answers_to_table([answer_to_row(make_answer("b", 300, 20))], 20)
    sizes = []
    for options in ({}, parquet_options(table.schema)):
        file = io.BytesIO()
        pq.write_table(table, file, compression="zstd", **options)
        sizes.append(len(file.getvalue()))
    assert sizes[1] < 0.9 * sizes[0]
    column = pq.ParquetFile(file).metadata.row_group(0)
    encodings = {column.column(i).path_in_schema: column.column(i).encodings for i in range(column.num_columns)}
    split = [path for path, found in encodings.items() if "BYTE_STREAM_SPLIT" in found]
    assert split == ["top_ids.list.element.list.element", "top_logprobs.list.element.list.element"]
    assert parquet_options(answer_schema(None)) == {}


def test_answers_without_soft_labels_have_no_columns_for_them() -> None:
    answer = make_answer("a", 3, None)
    table = answers_to_table([answer_to_row(answer)], None)
    assert table.schema.equals(answer_schema(None))
    assert not {"top_ids", "top_logprobs"} & set(table.column_names)
    assert answers_from_table(table) == [answer] == [answer_from_row(row) for row in read_rows(table)]


def test_answers_to_table_refuses_soft_labels_of_other_tokens() -> None:
    answer = dataclasses.replace(make_answer("a", 3, 2), tokens=[1, 2])
    with pytest.raises(ValueError, match="top_ids of a: 3 positions, 2 tokens"):
        answers_to_table([answer_to_row(answer)], 2)
