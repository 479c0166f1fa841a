"""What a worker must know; light, because the driver imports it too."""

from dataclasses import dataclass

from raydistill.training.batches import Plan


@dataclass(frozen=True)
class Job:
    """All that a worker must know.

    Attributes:
        model_dir: local folder of the base model.
        base_model: what the adapter's config names as its base.
        log_uri: the run's folder.
        plan: the steps.
        lora: rank and alpha.
        learning_rate: its peak.
        warmup_steps: until the peak.
        dtype: "float32" or "bfloat16".
        micro_batch_size: None for what fits.
        zero_stage: 0 to 3.
        checkpoint_every: steps.
        threads: CPU threads of this worker.
    """

    model_dir: str
    base_model: str
    log_uri: str
    plan: Plan
    lora: tuple[int, int]
    learning_rate: float
    warmup_steps: int
    dtype: str
    micro_batch_size: int | None
    zero_stage: int
    checkpoint_every: int
    threads: int
