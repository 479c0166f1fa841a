"""From our settings to the arguments of Ray Serve's LLM deployment and of vLLM."""

import os
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.core.configs.accelerators import CPUConfig, GPUConfig
from ray.serve.llm import LLMConfig

from raydistill.core.errors import ConflictError
from raydistill.core.models import resolve_model
from raydistill.engine.config import EngineConfig
from raydistill.engine.pacing import SETTING

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values vLLM accepts for max_lora_rank
MERGING = {"worker_extension_cls": "raydistill.engine.merging.MergingWorker"}  # for `TokenServer.merge_adapter`
PIECES_PER_SECOND_ON_CPU = 100.0  # of streams; see docs/serving.md for what it is worth
MEMORY_SHARE_ON_CPU = 0.05  # checked against free memory at start only; the KV cache is set in GiB


def vllm_args(config: EngineConfig, on_gpu: bool, lora: bool) -> dict[str, Any]:
    """Return vLLM's engine arguments: prefix cache on, eager on CPU, raw log-probabilities."""
    args: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": True,
        "tensor_parallel_size": config.tensor_parallel_size,
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": 20,
        "gpu_memory_utilization": config.gpu_memory_utilization if on_gpu else MEMORY_SHARE_ON_CPU,
        # A generation config of the model's folder must not change what a request asked for.
        "generation_config": "vllm",
    }
    if not on_gpu:
        args["enforce_eager"] = True  # starts in 14 s instead of 75 s on two cores
        # What rows share is cached by whole blocks: of a P of 734 tokens vLLM's 128 leave 94 to compute for every row.
        args["block_size"] = 32
        args["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
    if lora:
        # One slot more than adapters: even without our grouped path the last, empty one serves base rows.
        args |= {
            "enable_lora": True,
            "max_lora_rank": next(rank for rank in RANKS if rank >= min(config.max_lora_rank, RANKS[-1])),
            "max_loras": config.max_loras + 1,
            "max_cpu_loras": max(2 * config.max_loras, config.max_loras + 1),
        }
    return args | config.engine_kwargs


def make_llm_config(
    model_id: str, model_dir: str, config: EngineConfig, server_cls: type, *, lora: bool, drains: bool = False
) -> LLMConfig:
    """Return the LLMConfig of a deployment named `engine`.

    Args:
        model_id: the base model as users write it: its name in requests and answers.
        model_dir: its folder on this node; a replica on a node without it finds its own, see `find_model_here`.
        config: the engine's settings.
        server_cls: the LLMServer subclass that a replica runs.
        lora: whether adapters can be loaded.
        drains: see `deployment_options`.
    """
    on_gpu = config.runs_on_gpu()
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    if not on_gpu:
        env |= {
            "OMP_NUM_THREADS": str(config.omp_threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # Ray's workers share the same cores
        }
    if "HF_HUB_OFFLINE" in os.environ:
        env["HF_HUB_OFFLINE"] = os.environ["HF_HUB_OFFLINE"]
    return LLMConfig(
        model_loading_config={"model_id": model_id, "model_source": model_dir},
        engine_kwargs=vllm_args(config, on_gpu, lora),
        accelerator_config=GPUConfig(kind="gpu") if on_gpu else CPUConfig(kind="cpu"),
        deployment_config=deployment_options(config, drains=drains),
        runtime_env={"env_vars": env},
        experimental_configs={
            "stream_batching_interval_ms": 0,
            SETTING: config.front.stream_pieces_per_second or (None if on_gpu else PIECES_PER_SECOND_ON_CPU),
        },
        server_cls=server_cls,
        log_engine_metrics=False,
    )


def deployment_options(config: EngineConfig, *, drains: bool) -> dict[str, Any]:
    """Return Serve's words for how many replicas there are, how much one takes, how one goes, and when it is given up.

    Args:
        config: the engine's settings.
        drains: whether a replica that is to go answers what it has, however long that takes: a student. What is cut
            at a teacher, its job asks again.
    """
    options: dict[str, Any] = {"max_ongoing_requests": config.max_rows_at_replica}
    # Three failed checks end a replica: one whose engine is gone after 3 s. By Serve's 10 s it fails all rows for 30 s.
    options |= {"health_check_period_s": 1, "health_check_timeout_s": 60}
    options["logging_config"] = {"encoding": "JSON"}
    if drains:
        options["graceful_shutdown_timeout_s"] = config.drain_seconds  # Serve's 20 s would cut a longer answer
    return options | _replicas(config)


def _replicas(config: EngineConfig) -> dict[str, Any]:
    """Return Serve's words for how many replicas there are."""
    scaling = config.autoscaling
    if scaling is None:
        return {"num_replicas": config.num_replicas}
    options = {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "initial_replicas": scaling.initial_replicas,
        "target_ongoing_requests": scaling.target_ongoing_requests,
        "upscale_delay_s": scaling.upscale_delay_seconds,
        "downscale_delay_s": scaling.downscale_delay_seconds,
    }
    return {"autoscaling_config": {key: value for key, value in options.items() if value is not None}}


def find_model_here(llm_config: Any) -> None:
    """Point a replica's engine at the model's folder on its own node, fetched where it has to be.

    The application was built on another node perhaps, with that node's folder. A cached copy is named after what is in
    it (the digest of a listing, the hub's commit), so another name is another model.

    Raises:
        NotFoundError, StorageError: it is not on this node and cannot be fetched.
        ConflictError: it has changed since the application was built.
    """
    loading: Any = llm_config.model_loading_config
    if Path(loading.model_source).is_dir():
        return
    found = resolve_model(loading.model_id)
    if Path(found).name != Path(loading.model_source).name:
        raise ConflictError(
            f"model: {loading.model_id} was {loading.model_source} when the application was built and is {found} now. "
            "Start the application again."
        )
    loading.model_source = found
    engine: Any = llm_config.get_engine_config()
    engine.hf_model_id = found  # made from model_source, perhaps before
