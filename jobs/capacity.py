"""What a job needs of a cluster that it would start itself, and memory: refused before anything is started."""

import os
from collections.abc import Sequence

from jobs.runtime import ClusterConfig, is_own_cluster
from raydistill.core.errors import CapacityError
from raydistill.engine.config import EngineConfig


def require_here(
    what: str, cluster: ClusterConfig, cpus: int, engines: Sequence[EngineConfig] = (), training_gpus: int = 0
) -> None:
    """Refuse what a local cluster, which is not started yet, can never have.

    Memory is compared with all that this machine or its container has: what is free now may be more in a moment.

    Args:
        what: the job, for the message.
        cluster: another than a local one, and one that is up, is left to `require`.
        cpus: logical CPUs.
        engines: that run one after another.
        training_gpus: GPUs of the training workers, where they are asked for by name.

    Raises:
        CapacityError: with both numbers of all that is short.
    """
    import ray
    from ray._common.utils import get_system_memory

    if not is_own_cluster(cluster) or ray.is_initialized():
        return
    num_gpus, memory_bytes, shm_bytes = count_gpus_here(), get_system_memory(), _shared_memory_bytes()
    gpus = max([training_gpus, *(engine.count_gpus(num_gpus) for engine in engines)])
    store_bytes = cluster.object_store_mib * 2**20
    needed_bytes = store_bytes + max((engine.count_cache_bytes(num_gpus) for engine in engines), default=0)
    short = []
    if cpus > cluster.num_cpus:
        short.append(f"{cpus} CPU, the cluster has {cluster.num_cpus} (cluster.num_cpus)")
    if gpus > num_gpus:
        short.append(f"{gpus} GPU, the cluster has {num_gpus}")
    if needed_bytes > memory_bytes:
        short.append(
            f"{_gib(needed_bytes)} of memory (cluster.object_store_mib, and kv_cache_gib for each replica), this "
            f"machine has {_gib(memory_bytes)}"
        )
    if store_bytes > shm_bytes:
        short.append(f"{_gib(store_bytes)} for cluster.object_store_mib, /dev/shm has {_gib(shm_bytes)} free")
    if short:
        raise CapacityError(f"{what} needs {'; '.join(short)}. Ask for less, or use a larger machine or a cluster.")


def cache_bytes(cluster: ClusterConfig, *engines: EngineConfig) -> int:
    """Return the memory that `require` has to find for keys and values of engines that run one after another.

    It is 0 for a local cluster, at which `require_here` has looked: Ray counts what was free there as it started. It is
    0 too where a cluster grows by itself: nobody knows how large its nodes will be.
    """
    if is_own_cluster(cluster) or cluster.max_cpus is not None or cluster.max_gpus is not None:
        return 0
    return max((engine.count_cache_bytes() for engine in engines), default=0)


def count_gpus_here() -> int:
    """Return the GPUs that a local cluster would have, as Ray finds them."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    assert manager is not None
    found, visible = manager.get_current_node_num_accelerators(), manager.get_current_process_visible_accelerator_ids()
    return found if visible is None else min(found, len(visible))


def _shared_memory_bytes() -> float:
    """Return the largest object store that Ray takes for what /dev/shm has free; a small one it would put on disk."""
    from ray._private.ray_constants import REQUIRE_SHM_SIZE_THRESHOLD
    from ray._private.utils import get_shared_memory_bytes

    if os.environ.get("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"):
        return float("inf")
    return max(get_shared_memory_bytes(), REQUIRE_SHM_SIZE_THRESHOLD)


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:,.2f} GiB"
