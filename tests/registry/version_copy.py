"""A published version's folder that a test may change, and sign again."""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "version.json"
PREFIX = "base_model.model."


@dataclass
class Copy:
    """A version's folder that a mutant may change."""

    folder: Path

    def read(self, name):
        return json.loads((self.folder / name).read_bytes())

    def write(self, name, value):
        (self.folder / name).write_text(json.dumps(value))

    def tensors(self):
        return load_file(self.folder / WEIGHTS)

    def save(self, tensors):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.folder / WEIGHTS)

    def seal(self):
        """Write the digests of the files as they are now, as a publisher of the wrong adapter would have."""
        record = self.read(RECORD)
        record["files"] = [
            {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name in (CONFIG, WEIGHTS)
            for data in [(self.folder / name).read_bytes()]
        ]
        self.write(RECORD, record)

    def change_record(self, **changes):
        self.write(RECORD, {**self.read(RECORD), **changes})

    def change_config(self, **changes):
        self.write(CONFIG, {**self.read(CONFIG), **changes})
        self.seal()

    def pick_module(self, rng):
        names = sorted(name for name in self.tensors() if name.endswith(".lora_A.weight"))
        return rng.choice(names).removesuffix(".lora_A.weight")

    def replace_header(self, change, tail=b""):
        """Rewrite the safetensors header as text, whatever comes of it."""
        data = (self.folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = change(data[8 : 8 + length])
        (self.folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :] + tail)
        self.seal()
