"""Further versions of a distilled world: its first adapter with the weights scaled, so that each answers otherwise."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from raydistill.core.records import Version
from raydistill.registry.publish import publish
from raydistill.registry.versions import read_version


def publish_scaled(world: Any, factor: float) -> Version:
    """Publish the world's first adapter with its weights scaled, with a probe of its own.

    Args:
        world: of the fixture of that name.
        factor: of the adapter's effect.
    """
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from raydistill.scoring.probe import build_probe

    uri = world.settings.models_uri
    first = read_version(uri, "v0001")
    folder = Path(world.settings.task.storage) / f"scaled{factor}"
    shutil.copytree(f"{uri}/v0001", folder, dirs_exist_ok=True)
    tensors = load_file(folder / "adapter_model.safetensors")
    scaled = {name: value * np.float32(factor) if "lora_B" in name else value for name, value in tensors.items()}
    save_file(scaled, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rows = [(point.prefix, [point.token]) for point in first.probe]
    points, verifiable = build_probe(world.base_dir, str(folder), rows)
    draft = dataclasses.replace(first, number=0, files=[], probe=points, verifiable=verifiable)
    return publish(uri, draft, str(folder))
