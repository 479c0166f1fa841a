"""Settings of one engine, for teacher and student alike."""

from typing import Any, Literal

from pydantic import Field

from raydistill.core.config import Section


class EngineConfig(Section):
    """How an engine runs; the defaults suit two CPU cores and a small model."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPU where the Ray cluster has one."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: int = Field(2048, ge=16)
    """The longest prompt plus completion, in tokens."""
    max_num_seqs: int = Field(64, ge=1)
    """Rows decoded at once."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory for keys and values on CPU, in GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory the engine may take."""
    tensor_parallel_size: int = Field(1, ge=1)
    omp_threads: int = Field(2, ge=1)
    """Threads of a CPU engine."""
    num_replicas: int = Field(1, ge=1)
    start_timeout_seconds: float = Field(600, gt=0)
    max_lora_rank: int = Field(64, ge=1)
    """The largest rank a student serves."""
    max_loras: int = Field(4, ge=1)
    """Adapters in one batch; the engine gets one slot more."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of vLLM's engine, by its own name."""
