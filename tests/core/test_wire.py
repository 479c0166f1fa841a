"""The hand-coded protobuf against Google's own coder, and against damaged bytes."""

import math
import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from raydistill.core.errors import ServiceError
from raydistill.core.wire import decode_sample_response, encode_sample_response
from raydistill.types import SampledSequence


def _add(file, name, fields):
    message = file.message_type.add(name=name)
    for number, (field, kind, label, type_name) in fields.items():
        message.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)


@pytest.fixture(scope="module")
def messages():
    """The protocol's schema (sampling-protocol.md, section 4), in Google's protobuf."""
    kind = descriptor_pb2.FieldDescriptorProto
    one, many = kind.LABEL_OPTIONAL, kind.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="sample.proto", package="p", syntax="proto3")
    reason = file.enum_type.add(name="StopReason")
    reason.value.add(name="STOP", number=0)
    reason.value.add(name="LENGTH", number=1)
    _add(
        file,
        "Topk",
        {
            1: ("token_ids", kind.TYPE_BYTES, one, None),
            2: ("logprobs", kind.TYPE_BYTES, one, None),
            3: ("k", kind.TYPE_UINT32, one, None),
            4: ("length", kind.TYPE_UINT32, one, None),
        },
    )
    _add(
        file,
        "Sequence",
        {
            1: ("stop_reason", kind.TYPE_ENUM, one, ".p.StopReason"),
            2: ("tokens", kind.TYPE_BYTES, one, None),
            3: ("logprobs", kind.TYPE_BYTES, one, None),
            4: ("topk", kind.TYPE_MESSAGE, one, ".p.Topk"),
        },
    )
    _add(
        file,
        "Response",
        {
            1: ("sequences", kind.TYPE_MESSAGE, many, ".p.Sequence"),
            2: ("prompt_logprobs", kind.TYPE_BYTES, one, None),
            4: ("prompt_cache_hit_tokens", kind.TYPE_INT32, one, None),
        },
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Response"))


def test_google_reads_the_response_when_we_wrote_it(messages):
    sequences = [SampledSequence([1, 300, 2**31 - 1], [-0.5, -1.25, -2.0], "length"), SampledSequence([], [], "stop")]
    read = messages.FromString(encode_sample_response(sequences, cached_tokens=524))
    assert [item.stop_reason for item in read.sequences] == [1, 0]
    assert struct.unpack("<3i", read.sequences[0].tokens) == (1, 300, 2**31 - 1)
    assert struct.unpack("<3f", read.sequences[0].logprobs) == (-0.5, -1.25, -2.0)
    assert read.sequences[1].tokens == b"" and read.prompt_cache_hit_tokens == 524


def test_we_read_the_response_when_google_wrote_it_with_more_fields(messages):
    written = messages(prompt_logprobs=struct.pack("<2f", math.nan, -1.0), prompt_cache_hit_tokens=7)
    sequence = written.sequences.add(tokens=struct.pack("<2i", 5, 6), logprobs=struct.pack("<2f", -1.0, -2.0))
    sequence.topk.k = 300
    sequence.topk.token_ids = b"x" * 200
    written.sequences.add(stop_reason=1, tokens=struct.pack("<1i", 9))
    read = decode_sample_response(written.SerializeToString(), model="analyst/v0001@abc")
    assert read.model == "analyst/v0001@abc"
    assert read.sequences == [SampledSequence([5, 6], [-1.0, -2.0], "stop"), SampledSequence([9], None, "length")]


floats = st.floats(width=32, allow_nan=False)
rows = st.lists(st.tuples(st.integers(0, 2**31 - 1), floats), max_size=50)


@given(st.lists(st.tuples(rows, st.sampled_from(["stop", "length"])), max_size=4))
def test_sequences_are_unchanged_when_coded_and_read(drawn):
    sequences = [SampledSequence([t for t, _ in row], [p for _, p in row], reason) for row, reason in drawn]
    assert decode_sample_response(encode_sample_response(sequences)).sequences == sequences


@given(st.binary(max_size=60))
def test_damaged_bytes_are_a_service_error_when_they_cannot_be_read(data):
    try:
        decode_sample_response(data)
    except ServiceError as error:
        assert "no SampleResponse" in str(error)


def test_response_is_refused_when_cut_short_or_untold():
    whole = encode_sample_response([SampledSequence([1, 2], [-1.0, -2.0], "stop")])
    for cut in range(1, len(whole)):
        with pytest.raises(ServiceError):
            decode_sample_response(whole[:cut])
    with pytest.raises(ServiceError, match="no SampleResponse"):
        decode_sample_response(b'{"type": "try_again"}')
    with pytest.raises(ServiceError):  # stop reason 2 does not exist
        decode_sample_response(b"\x0a\x02\x08\x02")


def test_encoding_is_refused_when_tokens_and_logprobs_do_not_fit():
    with pytest.raises(ValueError, match="outside"):
        encode_sample_response([SampledSequence([2**31], [0.0], "stop")])
    with pytest.raises(ValueError, match="1 log-probabilities for 2 tokens"):
        encode_sample_response([SampledSequence([1, 2], [0.0], "stop")])
