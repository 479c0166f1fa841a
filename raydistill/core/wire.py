"""The protobuf body of a finished sample, coded by hand: neither protoc nor a generated module is needed.

SampleResponse : 1 repeated SampledSequence | 4 int32 prompt_cache_hit_tokens
SampledSequence: 1 enum stop_reason (0 stop, 1 length) | 2 bytes tokens (i32[n]) | 3 bytes logprobs (f32[n])

Arrays are raw little-endian bytes. Other fields of the protocol are skipped by the reader and never written.
"""

import struct
from collections.abc import Iterator, Sequence

from raydistill.core.errors import ServiceError
from raydistill.types import SampledSequence, SampleResponse, StopReason

_STOP_REASONS: tuple[StopReason, ...] = ("stop", "length")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_INT32_LIMIT = 1 << 31


def encode_sample_response(sequences: Sequence[SampledSequence], cached_tokens: int | None = None) -> bytes:
    """Return a SampleResponse's bytes.

    Args:
        sequences: the completions; each needs a log-probability for every token, or None for all.
        cached_tokens: prompt tokens found in the prefix cache, where known.

    Raises:
        ValueError: a token does not fit in 32 bits, or logprobs and tokens differ in number.
    """
    body = b"".join(_field(1, _encode_sequence(sequence)) for sequence in sequences)
    if cached_tokens is not None:
        body += _varint(4 << 3 | _VARINT) + _varint(cached_tokens)
    return body


def _encode_sequence(sequence: SampledSequence) -> bytes:
    tokens = sequence.tokens
    if any(not 0 <= token < _INT32_LIMIT for token in tokens):
        raise ValueError("a token id is outside 0 to 2**31 - 1")
    body = _varint(1 << 3 | _VARINT) + _varint(_STOP_REASONS.index(sequence.stop_reason))
    body += _field(2, struct.pack(f"<{len(tokens)}i", *tokens))
    if sequence.logprobs is not None:
        if len(sequence.logprobs) != len(tokens):
            raise ValueError(f"{len(sequence.logprobs)} log-probabilities for {len(tokens)} tokens")
        body += _field(3, struct.pack(f"<{len(tokens)}f", *sequence.logprobs))
    return body


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_sample_response(data: bytes, model: str = "") -> SampleResponse:
    """Return the SampleResponse in a body.

    Args:
        data: the body of a finished `retrieve_future`.
        model: the exact version, which the protocol carries in a header.

    Raises:
        ServiceError: the bytes are no SampleResponse.
    """
    try:
        sequences = [
            _decode_sequence(value) for number, value in _fields(data) if number == 1 and isinstance(value, bytes)
        ]
    except (IndexError, ValueError, struct.error) as error:
        raise ServiceError(
            f"the server's answer is no SampleResponse ({error}). Is a proxy between it and the client?"
        ) from error
    return SampleResponse(sequences=sequences, model=model)


def _decode_sequence(data: bytes) -> SampledSequence:
    stop_reason = 0
    tokens: list[int] = []
    logprobs: list[float] | None = None
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            stop_reason = value
        elif number == 2 and isinstance(value, bytes):
            tokens = [item for (item,) in struct.iter_unpack("<i", value)]
        elif number == 3 and isinstance(value, bytes):
            logprobs = [item for (item,) in struct.iter_unpack("<f", value)]
    if logprobs is not None and len(logprobs) != len(tokens):
        raise ValueError(f"{len(logprobs)} log-probabilities for {len(tokens)} tokens")
    return SampledSequence(tokens=tokens, logprobs=logprobs, stop_reason=_STOP_REASONS[stop_reason])


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of one message: an int of a varint, bytes of everything else."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, position = _read_varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"cut short at byte {len(data)}")
        yield key >> 3, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"endless number at byte {position}")
