"""What a worker must know; light, because the driver imports it too."""

from dataclasses import dataclass

from raydistill.training.batches import Plan


@dataclass(frozen=True)
class Objective:
    """What is minimised where a teacher's distribution is known; elsewhere it is cross-entropy.

    Attributes:
        kl_weight: of forward KL(teacher || student); the rest is cross-entropy's.
        kl_temperature: both sides' logits are divided by it.
    """

    kl_weight: float = 1.0
    kl_temperature: float = 1.0


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
        objective: what is minimised where a teacher is known.
        teacher_prefix: token ids that stand before the teacher's rows.
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
    objective: Objective = Objective()
    teacher_prefix: tuple[int, ...] = ()
