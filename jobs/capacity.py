"""What a job needs of a cluster, one that is up or that it would start: refused before anything is started."""

import os
from collections.abc import Iterable, Mapping, Sequence

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


def require(
    what: str,
    cpus: float = 0,
    gpus: float = 0,
    memory_bytes: float = 0,
    cluster: ClusterConfig | None = None,
) -> None:
    """Refuse what the connected cluster can never have.

    Args:
        what: the job, for the message.
        cpus: logical CPUs.
        gpus: GPUs.
        memory_bytes: memory that Ray reserves.
        cluster: says what the cluster can grow to, where it does so by itself.

    Raises:
        CapacityError: with both numbers, before anything is started.
    """
    import ray

    have = dict(ray.cluster_resources())
    if cluster is not None:
        have["CPU"] = max(have.get("CPU", 0), cluster.max_cpus or 0)
        have["GPU"] = max(have.get("GPU", 0), cluster.max_gpus or 0)
    wanted = {"CPU": cpus, "GPU": gpus, "memory": memory_bytes}
    short = [
        f"{wanted[key]:g} {key}, the cluster has {have.get(key, 0):g}"
        for key in wanted
        if wanted[key] > have.get(key, 0)
    ]
    if short:
        raise CapacityError(
            f"{what} needs {'; '.join(short)}. Ask for less, or give the cluster more (cluster.num_cpus; "
            "cluster.max_cpus and cluster.max_gpus where it grows by itself)."
        )


def require_room(what: str, count: int, size: Mapping[str, float], cluster: ClusterConfig, apart: bool = False) -> None:
    """Refuse what the nodes of the connected cluster have no room for one by one, though all of them together may.

    A cluster that grows by itself is believed: of what size its next nodes are Ray does not tell.

    Args:
        what: the parts, for the message.
        count: how many parts.
        size: what a node must have for one of them: logical CPUs, GPUs.
        cluster: says whether it grows.
        apart: each part has a node of its own.

    Raises:
        CapacityError: with both numbers, before anything is started.
    """
    import ray

    if cluster.max_cpus is not None or cluster.max_gpus is not None:
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = [min(int(node.get(key, 0) // amount) for key, amount in size.items()) for node in nodes]
    have = sum(min(1, parts) for parts in room) if apart else sum(room)
    if have < count:
        sizes = sorted({_list_resources(node, size) for node in nodes})
        where = "each on a node of its own" if apart else "each on one node"
        raise CapacityError(
            f"{what} needs {count} times {_list_resources(size, size)}, {where}; the cluster has room for {have}, its "
            f"{len(nodes)} nodes have {', '.join(sizes)}. Ask for less, or give the cluster more or larger nodes "
            "(cluster.max_cpus where it grows by itself)."
        )


def _list_resources(have: Mapping[str, float], keys: Iterable[str]) -> str:
    return " and ".join(f"{have.get(key, 0):g} {key}" for key in keys)


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
