"""Where a job reads and writes: what it needs of these places is looked at before anything is started."""

from collections.abc import Sequence
from pathlib import Path

from raydistill.core.errors import ConfigError
from raydistill.core.models import DEMO_SCHEME, cache_dir, resolve_model
from raydistill.core.preflight import check_storage
from raydistill.core.uris import is_remote

Place = tuple[str, str]  # (the key under which the user finds it, the path or URI)


def find_model(model: str, weights: bool = True) -> str:
    """Return a model's local folder, as `resolve_model`; a store that cannot be read is a ConfigError."""
    if is_remote(model):
        check_storage("model", model, read_only=True)
    return resolve_model(model, weights)


def model_places(key: str, model: str) -> list[Place]:
    """Return where a model lies on this machine; nothing for a hub id or a URI, which every node can get by itself."""
    if model.startswith(DEMO_SCHEME):
        return [(f"{key} ({model}, kept below RAYDISTILL_CACHE)", str(cache_dir()))]
    return [(key, model)] if not is_remote(model) and Path(model).expanduser().is_dir() else []


def check_shared(places: Sequence[Place], shared_dir: str | None, num_nodes: int) -> None:
    """Refuse places that not every node sees; on one node all are fine.

    Args:
        places: outputs, datasets, storage and models.
        shared_dir: a folder that the user says every node sees.
        num_nodes: of the cluster.

    Raises:
        ConfigError: names every key and path that is neither a URI nor below shared_dir.
    """
    if num_nodes <= 1:
        return
    if shared_dir is not None and not Path(shared_dir).is_dir():
        raise ConfigError(f"cluster.shared_dir: {shared_dir} is no folder on this node. Is it mounted?")
    shared = None if shared_dir is None else Path(shared_dir).resolve()
    alone = [f"{key}: {path}" for key, path in places if not is_remote(path) and not _is_below(path, shared)]
    if alone:
        told = "no cluster.shared_dir is set" if shared_dir is None else f"cluster.shared_dir is {shared_dir}"
        raise ConfigError(
            f"the cluster has {num_nodes} nodes, and these places are of one machine alone ({told}):\n  - "
            + "\n  - ".join(alone)
            + "\nGive s3:// URIs, or folders below a cluster.shared_dir that every node has mounted."
        )


def _is_below(path: str, shared: Path | None) -> bool:
    # Links and `..` are followed: what looks as if it were below may lead out of it.
    return shared is not None and Path(path).expanduser().resolve().is_relative_to(shared)
