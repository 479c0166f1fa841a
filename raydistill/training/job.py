"""What a worker must know; light, because the driver imports it too."""

from dataclasses import dataclass

from raydistill.training.batches import Plan
from raydistill.training.schedule import Schedule


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
class Lora:
    """The adapter.

    Attributes:
        rank: of its matrices.
        alpha: scaling is alpha / rank.
        targets: last names of the layers that carry it; None for every linear layer but the head.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Engine:
    """How the weights are trained on the workers; no setting of it but max_grad_norm changes the outcome.

    Attributes:
        zero_stage: 0 to 3.
        offload: "none", "optimizer" or "parameters".
        max_grad_norm: gradients are scaled down to it; None for never.
        micro_batch_size: None for what fits.
        pack_tokens: None for what suits the device.
        threads: CPU threads of a worker.
    """

    zero_stage: int
    offload: str
    max_grad_norm: float | None
    micro_batch_size: int | None
    pack_tokens: int | None
    threads: int


@dataclass(frozen=True)
class Rhythm:
    """When there is what besides steps.

    Attributes:
        eval_every: steps between measurements of the held-out loss.
        patience: stop after so many without gain; None for never.
        checkpoint_every: steps between checkpoints.
    """

    eval_every: int
    patience: int | None
    checkpoint_every: int


@dataclass(frozen=True)
class Job:
    """All that a worker must know.

    Attributes:
        model_dir: local folder of the base model.
        base_model: what the adapter's config names as its base.
        log_uri: the run's folder.
        plan: the steps.
        dtype: "float32" or "bfloat16".
        lora: the adapter.
        schedule: the learning rate.
        engine: how the weights are trained.
        rhythm: evaluations and checkpoints.
        objective: what is minimised where a teacher is known.
        teacher_prefix: token ids that stand before the teacher's rows.
        gradient_checkpointing: whether activations are computed again in the backward pass.
    """

    model_dir: str
    base_model: str
    log_uri: str
    plan: Plan
    dtype: str
    lora: Lora
    schedule: Schedule
    engine: Engine
    rhythm: Rhythm
    objective: Objective = Objective()
    teacher_prefix: tuple[int, ...] = ()
    gradient_checkpointing: bool = False
