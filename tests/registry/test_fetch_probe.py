"""Fetching with every digest checked, safetensors read with numpy, and the probe's arithmetic."""

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from raydistill.core.errors import VerificationError
from raydistill.core.records import MIN_PROBE_SHIFT_NATS, FileEntry, ProbePoint
from raydistill.registry.fetch import fetch_version
from raydistill.registry.files import read_header, read_tensors
from raydistill.registry.probe import probe_passes, probe_shift
from raydistill.registry.publish import publish
from tests.drafts import make_draft, write_bare_adapter


@pytest.fixture
def published(tmp_path):
    uri = str(tmp_path / "models" / "triage")
    return uri, publish(uri, make_draft(), write_bare_adapter(tmp_path / "adapter", bytes(range(256))))


def test_fetch_gives_the_files_once_and_leaves_nothing_else(published, tmp_path):
    uri, version = published
    cache = tmp_path / "cache"
    folder = fetch_version(uri, version, cache)
    assert (folder / "adapter_model.safetensors").read_bytes() == bytes(range(256))
    assert [entry.name for entry in cache.iterdir()] == [folder.name]
    assert version.content_digest in folder.name
    shutil.rmtree(uri)  # the second time nothing is read from the registry
    assert fetch_version(uri, version, cache) == folder


def test_fetch_mends_a_damaged_folder(published, tmp_path):
    uri, version = published
    folder = fetch_version(uri, version, tmp_path / "cache")
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    assert fetch_version(uri, version, tmp_path / "cache") == folder
    assert (folder / "adapter_model.safetensors").read_bytes() == bytes(range(256))
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name]


@pytest.mark.parametrize("data", [b"", bytes(range(255)), bytes(reversed(range(256)))])
def test_fetch_refuses_a_changed_file_and_keeps_nothing(published, tmp_path, data):
    uri, version = published
    Path(uri, "v0001", "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(VerificationError, match="was published with 256 bytes"):
        fetch_version(uri, version, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["../../evil.safetensors", "adapter_model.bin", "model.pt"])
def test_fetch_refuses_other_files_than_the_two(published, tmp_path, name):
    uri, version = published
    odd = dataclasses.replace(version, files=[*version.files, FileEntry(name, 0, "0" * 64)])
    with pytest.raises(VerificationError, match="allowed are"):
        fetch_version(uri, odd, tmp_path / "cache")
    with pytest.raises(VerificationError, match="no name"):
        fetch_version(uri, dataclasses.replace(version, name="../x"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_read_tensors_equals_torch_in_every_float_type(tmp_path, dtype):
    tensors = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype), "none": torch.zeros(0, 4).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = dict(read_tensors(tmp_path / "x.safetensors"))
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(found[name].astype(np.float64), tensor.double().numpy())


def test_read_header_refuses_what_is_no_whole_safetensors_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(30, 50)}, path)
    whole = path.read_bytes()
    for data in (b"", b"\x80\x02pickle", whole[:100], whole[:-1], (2**60).to_bytes(8, "little") + whole[8:]):
        path.write_bytes(data)
        with pytest.raises(VerificationError):
            read_header(path)
    save_file({"a": torch.zeros(3, dtype=torch.int64)}, path)
    with pytest.raises(VerificationError, match="I64"):
        list(read_tensors(path))


def points(shift, count=16):
    return [ProbePoint([1, index], index, -10.0, -10.0 + shift) for index in range(count)]


def test_probe_passes_for_the_adapter_and_not_for_the_base():
    assert probe_passes(points(8.0), [-2.0] * 16)[0]
    assert probe_passes(points(8.0), [-2.0 + 1.9] * 16)[0]
    passed, reason = probe_passes(points(8.0), [-10.0] * 16)
    assert not passed
    assert "8.000 nat" in reason
    assert not probe_passes(points(-8.0), [-10.0] * 16)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_probe_fails_on_values_that_are_not_finite_even_when_unverifiable(value):
    for shift in (8.0, 0.1):
        served = [point.adapter for point in points(shift)]
        served[3] = value
        passed, reason = probe_passes(points(shift), served)
        assert not passed
        assert "point 3" in reason


def test_probe_fails_when_a_value_is_missing():
    assert not probe_passes(points(8.0), [-2.0] * 15)[0]


def test_probe_below_the_least_shift_asks_for_finite_values_only():
    passed, reason = probe_passes(points(0.1), [-5.0] * 16)
    assert passed
    assert "unverifiable" in reason
    assert probe_passes([], []) == (
        True,
        "unverifiable: the adapter moves the probe by 0.00 nat only; all values are finite",
    )


@given(st.floats(MIN_PROBE_SHIFT_NATS, 20), st.floats(0, 1))
def test_probe_limit_is_a_quarter_of_the_shift(shift, share):
    served = [point.adapter + share * shift for point in points(shift)]
    assert probe_shift(points(shift)) == pytest.approx(shift)
    if abs(share - 0.25) > 1e-6:
        assert probe_passes(points(shift), served)[0] == (share < 0.25)
