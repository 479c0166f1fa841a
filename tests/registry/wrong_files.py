"""Versions whose files are wrong as files: changed, cut, missing, huge, a pickle, or no whole safetensors."""

import hashlib
import json
import pickle
import struct
from pathlib import Path

from tests.registry.version_copy import CONFIG, PREFIX, RECORD, WEIGHTS

TEN_GB = 10 * 10**9


def flip_a_byte(copy, rng):
    path = copy.folder / rng.choice([CONFIG, WEIGHTS])
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut_a_file(copy, rng):
    path = copy.folder / rng.choice([CONFIG, WEIGHTS])
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def lengthen_a_file(copy, rng):
    with (copy.folder / rng.choice([CONFIG, WEIGHTS])).open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 100)))


def remove_a_file(copy, rng):
    (copy.folder / rng.choice([CONFIG, WEIGHTS])).unlink()


def make_a_file_ten_gb(copy, rng):
    with (copy.folder / rng.choice([CONFIG, WEIGHTS])).open("r+b") as file:
        file.truncate(TEN_GB + rng.randrange(1000))  # sparse: it takes no room


def declare_a_tensor_of_ten_gb(copy, rng):
    def change(header):
        entries = json.loads(header)
        entry = entries[rng.choice([name for name in entries if name != "__metadata__"])]
        entry["shape"], entry["data_offsets"] = [TEN_GB // 4], [entry["data_offsets"][0], TEN_GB]
        return json.dumps(entries).encode()

    copy.replace_header(change)


def declare_a_header_of_ten_gb(copy, rng):
    path = copy.folder / WEIGHTS
    path.write_bytes(struct.pack("<Q", TEN_GB + rng.randrange(1000)) + path.read_bytes()[8:])
    copy.seal()


def cut_and_seal(copy, rng):
    path = copy.folder / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])
    copy.seal()


def lengthen_and_seal(copy, rng):
    copy.replace_header(lambda header: header, tail=rng.randbytes(rng.randrange(1, 100)))


def flip_a_header_bit(copy, rng):
    def change(header):
        data, first = bytearray(header), header.index(PREFIX.encode())  # behind the metadata, which may say anything
        last = len(header.rstrip()) - 1
        data[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        return bytes(data)

    copy.replace_header(change)


def repeat_a_header_key(copy, rng):
    def change(header):
        entries = json.loads(header)
        name = rng.choice([name for name in entries if name != "__metadata__"])
        again = f", {json.dumps(name)}: {json.dumps(entries[name])}}}"
        return header.rstrip()[:-1] + again.encode()

    copy.replace_header(change)


def overlap_tensors(copy, rng):
    def change(header):
        entries = json.loads(header)
        by_shape = {}
        for name, entry in entries.items():
            if name != "__metadata__":
                by_shape.setdefault(tuple(entry["shape"]), []).append(name)
        first, second = rng.sample(rng.choice([names for names in by_shape.values() if len(names) > 1]), 2)
        entries[first]["data_offsets"] = entries[second]["data_offsets"]
        return json.dumps(entries).encode()

    copy.replace_header(change)


def pickle_the_weights(copy, rng):
    """A pickle under the right name, or listed beside it; whoever loads it leaves a trace."""
    trace = copy.folder / "pickle-was-loaded"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trace,)

    data = pickle.dumps(Trap(), protocol=rng.randrange(6))
    if rng.random() < 0.5:
        (copy.folder / WEIGHTS).write_bytes(data)
        copy.seal()
        return
    name = rng.choice(["adapter_model.bin", "adapter_model.pt", "training_args.bin", "adapter_model.safetensors.pkl"])
    (copy.folder / name).write_bytes(data)
    entry = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = copy.read(RECORD)["files"]
    copy.change_record(files=[files[0], entry] if rng.random() < 0.5 else [*files, entry])
