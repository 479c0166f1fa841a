"""Settings of one engine, for teacher and student alike."""

from typing import Any, Literal

from pydantic import Field, model_validator

from raydistill.core.config import Section


class AutoscalingConfig(Section):
    """How many replicas there are, where that follows the load."""

    min_replicas: int = Field(1, ge=0)
    """0: the engine goes away when nobody asks, and comes back by itself with the next request."""
    max_replicas: int = Field(ge=1)
    initial_replicas: int | None = Field(None, ge=0)
    """To start with; min_replicas where nothing is said."""
    target_ongoing_requests: float = Field(32, gt=0)
    """Requests at a replica, on average: more bring another one. At most create_data.concurrency, for a teacher."""
    upscale_delay_seconds: float = Field(10, ge=0)
    """How long there must be more."""
    downscale_delay_seconds: float = Field(120, ge=0)
    """How long there must be fewer."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "AutoscalingConfig":
        initial = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        if not self.min_replicas <= initial <= self.max_replicas:
            raise ValueError("min_replicas <= initial_replicas <= max_replicas must hold")
        return self


class FrontConfig(Section):
    """What the HTTP front of an engine takes from its clients."""

    max_body_kib: int = Field(1024, ge=1)
    """The longest body of a request; a longer one is refused (413) while it comes in."""
    max_waiting: int | None = Field(None, ge=0)
    """Rows at a replica beyond max_num_seqs, per replica; with more a request gets 429. By default 3 * max_num_seqs."""
    retry_after_seconds: int = Field(1, ge=1)
    """What a request that got 429 is told to wait."""
    request_timeout_seconds: float = Field(600, gt=0)
    """From a request's arrival to its last token; then 504. A replica that is to go waits so long for its requests."""
    stream_pieces_per_second: float | None = Field(None, gt=0)
    """Of all streams at a replica together; with more, several tokens come in one piece. By default 100 on CPU, whose
    engine shares its cores with them, and one a token on GPU."""
    cors_origins: list[str] = Field(default_factory=list)
    """Origins whose pages may read the answers; by default none."""


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
    """Replicas, always; see autoscaling for what follows the load."""
    autoscaling: AutoscalingConfig | None = None
    """A table; it takes the place of num_replicas."""
    front: FrontConfig = Field(default_factory=lambda: FrontConfig.model_validate({}))
    """A table: what the HTTP front takes."""
    start_timeout_seconds: float = Field(600, gt=0)
    max_lora_rank: int = Field(64, ge=1)
    """The largest rank a student serves."""
    max_loras: int = Field(4, ge=1)
    """Adapters in one batch; the engine gets one slot more."""
    adapter_mode: Literal["lora", "merged"] = "lora"
    """merged: a student serves one alias, its version merged into the weights, as fast as the base; see versions.md."""
    merged_alias: str | None = None
    """With adapter_mode = "merged": what is served, like "triage/final"; a task's own by default."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of vLLM's engine, by its own name."""

    @property
    def max_replicas(self) -> int:
        """The most replicas there may be."""
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas

    @property
    def max_rows_at_replica(self) -> int:
        """The most rows at one replica, decoding and waiting."""
        waiting = self.front.max_waiting
        return self.max_num_seqs + (3 * self.max_num_seqs if waiting is None else waiting)

    @property
    def drain_seconds(self) -> float:
        """How long a replica that is to go waits for its requests: as long as one of them may take, and a moment."""
        return self.front.request_timeout_seconds + 5

    def count_gpus(self, num_gpus: float | None = None) -> int:
        """Return the GPUs that its replicas hold at most; see `runs_on_gpu`."""
        return self.max_replicas * self.tensor_parallel_size if self.runs_on_gpu(num_gpus) else 0

    def replica_size(self) -> dict[str, float]:
        """Return what one node must have for a replica; further GPUs may be on other nodes."""
        return {"CPU": 1, "GPU": 1} if self.runs_on_gpu() else {"CPU": 2}

    def count_cache_bytes(self, num_gpus: float | None = None) -> int:
        """Return the memory that its replicas take at most for keys and values beside GPUs; see `runs_on_gpu`."""
        return 0 if self.runs_on_gpu(num_gpus) else int(self.max_replicas * self.kv_cache_gib * 2**30)

    def runs_on_gpu(self, num_gpus: float | None = None) -> bool:
        """Return whether it runs on a GPU.

        Args:
            num_gpus: that there are; None asks the connected cluster.
        """
        import ray

        if self.accelerator == "auto":
            return (ray.cluster_resources().get("GPU", 0) if num_gpus is None else num_gpus) > 0
        return self.accelerator == "gpu"
