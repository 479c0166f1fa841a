"""From a trained adapter to a version in the registry: its probe, its record, on request the merged model."""

import contextlib
import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import ConflictError
from raydistill.core.records import ProbePoint, Version
from raydistill.core.uris import is_remote, join
from raydistill.registry.aliases import ALIASES_FILE, HISTORY_FOLDER
from raydistill.registry.files import ADAPTER_FILES
from raydistill.registry.merged import MERGED_FOLDER, merged_uri, publish_merged, read_merged
from raydistill.registry.publish import publish
from raydistill.registry.versions import LABEL
from raydistill.training.batches import EncodedRow

PROBE_TIMEOUT_SECONDS = 900
MERGE_TIMEOUT_SECONDS = 3600
logger = logging.getLogger(__name__)


def check_output(output_uri: str) -> None:
    """Refuse an output_dir that holds something else than a model's versions.

    Raises:
        ConflictError: names what is there.
    """
    known = {ALIASES_FILE, HISTORY_FOLDER, MERGED_FOLDER}
    foreign = [name for name in storage.list_names(output_uri) if name not in known and not LABEL.fullmatch(name)]
    if foreign:
        raise ConflictError(
            f"output_dir: {output_uri} holds {', '.join(foreign[:5])} and is no model's registry folder. "
            "Give a folder of its own, its last part the model's name."
        )


def publish_adapter(
    output_uri: str, draft: Version, adapter_dir: str, model_dir: str, rows: Sequence[EncodedRow]
) -> Version:
    """Build the probe of a trained adapter and publish it; no alias moves.

    Args:
        output_uri: the model's registry folder.
        draft: the version but for its probe and what the adapter's own config says.
        adapter_dir: folder or URI in PEFT's format.
        model_dir: local folder of the base.
        rows: trained on; the probe asks for tokens of theirs.
    """
    with _local(adapter_dir) as folder:
        from raydistill.scoring.probe import build_probe

        pairs = [(row.prompt_tokens, row.response_tokens) for row in rows]
        probe: list[ProbePoint]
        probe, verifiable = _run_here(build_probe, PROBE_TIMEOUT_SECONDS, model_dir, folder, pairs)
        adapter = json.loads((Path(folder) / "adapter_config.json").read_bytes())
        targets = sorted(adapter["target_modules"])
        lora = {"rank": adapter["r"], "alpha": adapter["lora_alpha"], "targets": targets, **draft.lora}
        if not verifiable:
            logger.warning("The adapter moves too little to be told from its base by a probe; it is unverifiable.")
        return publish(output_uri, dataclasses.replace(draft, lora=lora, probe=probe, verifiable=verifiable), folder)


def publish_merged_model(output_uri: str, version: Version, model_dir: str) -> str:
    """Write a version's merged model beside it, unless it is there already, and return its place."""
    from raydistill.training.merge import merge_adapter

    place = merged_uri(output_uri, version.label)
    if read_merged(output_uri, version) is None:
        with _local(join(output_uri, version.label)) as folder, tempfile.TemporaryDirectory() as merged:
            _run_here(merge_adapter, MERGE_TIMEOUT_SECONDS, model_dir, folder, merged)
            publish_merged(output_uri, version, Path(merged))
    logger.info("The merged model of %s is in %s.", version.label, place)
    return place


@contextlib.contextmanager
def _local(adapter_dir: str) -> Iterator[str]:
    """Give an adapter's folder on this node."""
    if not is_remote(adapter_dir):
        yield adapter_dir
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in ADAPTER_FILES:
            storage.download(join(adapter_dir, name), Path(temporary) / name)
        yield temporary


def _run_here(function: Callable[..., Any], timeout_seconds: float, *arguments: Any) -> Any:
    """Call a function in a process of its own on this node, so that a model's memory is free again afterwards."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote = ray.remote(num_cpus=1, max_calls=1, scheduling_strategy=here)(function)  # pyright: ignore[reportArgumentType] - its annotation is too narrow
    return ray.get(remote.remote(*arguments), timeout=timeout_seconds)
