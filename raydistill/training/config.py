"""The `[train]` table."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from raydistill.core.config import Section


class TrainConfig(Section):
    """What is trained on what, and where it goes."""

    data_file: str
    """A dataset of create_data (its folder or its .jsonl), or any .jsonl of {"messages": [...]} lines."""
    student_model: str
    """A folder, a hub id, s3:// or demo://: the base model that gets the adapter."""
    output_dir: str | None = None
    """The model's registry folder, its name the last component; by default models/<stem of data_file>."""
    log_path: str | None = None
    """Checkpoints, metrics.jsonl and the resolved config; by default runs/<name>/<run id> beside models/.
    The same command with the same log_path goes on where it stopped."""

    loss: Literal["auto", "cross_entropy", "kl"] = "auto"
    """cross_entropy learns the teacher's tokens, kl its whole distribution: forward KL(teacher with P || student). The
    teacher is the student's own base with P in front, or, where another model with the same tokenizer answered, its
    recorded top_logprobs. auto is kl where that can be had."""
    kl_weight: float = Field(1.0, gt=0, le=1)
    """Of kl; the rest is cross_entropy's."""
    kl_temperature: float = Field(1.0, gt=0, le=100)
    """Both sides' logits are divided by it; above 1 unlikely tokens count more. The loss is not multiplied by its
    square: at 2 the gradients of kl are about a quarter. Recorded top_logprobs are of 1."""

    retain_fraction: float = Field(0.0, ge=0, le=1)
    """Prompts that have nothing to do with the task, as a share of batch_size, on which KL to the untouched base joins
    the loss: it keeps other abilities, and takes that share more time."""

    lora_rank: int = Field(32, ge=1, le=512)
    lora_alpha: int | None = Field(None, ge=1)
    """Scaling is alpha / rank; by default alpha = rank, so that the learning rate does not depend on the rank."""
    lora_targets: list[str] | None = Field(None, min_length=1)
    """Last names of the linear layers that get an adapter, like ["q_proj", "v_proj"]; by default all but the head."""
    num_epochs: int = Field(3, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Stops after so many steps, whatever num_epochs says."""
    batch_size: int = Field(8, ge=1)
    """Examples in a step, over all workers."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Examples that a worker packs into one sequence; by default as many as fit pack_tokens."""
    pack_tokens: int | None = Field(None, ge=1)
    """Tokens that a worker packs into one sequence; a longer example stands alone. By default 2,048 on CPUs and 8,192
    on GPUs: more keep a GPU busier and take more memory."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """By default from the model's width: raydistill.get_lr."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate goes on after the warm-up: down to 0 in a line or in half a cosine, or not at all."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises in a line."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients whose norm over all weights is larger are scaled down to it. Adam's steps depend on how gradients
    compare with earlier ones, so this tames the one step that stands out and else changes little."""
    seed: int = Field(0, ge=0)
    """Of the LoRA weights and of the order of the rows."""
    raw_fraction: float = Field(0.1, ge=0, le=1)
    """Share of the examples shown as the plain encoded query, without the chat template."""
    renderer: Literal["chat", "raw"] = "chat"
    max_length: int | None = Field(None, ge=2)
    """Tokens of an example at most; by default what the student can read."""
    too_long: Literal["drop", "cut_history", "refuse"] = "drop"
    """Longer examples are left out, lose their oldest turns, or end the job; counted in each case. A response is never
    cut: an example whose last turn alone is too long is left out."""
    allow_other_template: bool = False
    """Train on a dataset whose teacher has the student's tokenizer but another chat template."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the frozen base's weights and of matrix products; adapters and optimizer are float32 always.
    By default bfloat16 on GPUs and on CPUs that have units for it, else float32."""

    num_workers: int | list[int] = 2
    """A number, or [fewest, most]: as many as the cluster has room for, fewer when a node is lost."""
    use_gpu: bool | None = None
    """By default where the cluster has a GPU for every worker."""
    threads_per_worker: int = Field(1, ge=1)
    """CPU threads, and Ray's logical CPUs, of a worker."""
    placement: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    """Ray's placement of the workers: on few nodes, on many, or each on a node of its own."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed's ZeRO: what is split over the workers (1 optimizer, 2 gradients, 3 weights)."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lies in the machine's memory instead of the GPU's: the optimizer's state (zero_stage 1 to 3), or the
    base's weights too (zero_stage 3)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    eval_every: int = Field(25, ge=1)
    """Steps between measurements of the held-out loss; there is one before the first step and one at the end. The
    weights with the lowest are what is published."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many measurements in a row without a lower held-out loss; by default never."""
    checkpoint_every: int = Field(25, ge=1)
    """Steps between checkpoints; the end always has one."""
    max_failures: int = Field(2, ge=0)
    """How often a lost worker is replaced, from the last checkpoint."""

    merge: bool = False
    """Also write the student with the adapter merged in, a whole model for servers without LoRA."""
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics go besides metrics.jsonl; the package must be installed."""

    @property
    def min_workers(self) -> int:
        """Without these training does not start."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """More are never started."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[-1]

    @field_validator("num_workers")
    @classmethod
    def _is_a_number_or_a_range(cls, value: int | list[int]) -> int | list[int]:
        ends = value if isinstance(value, list) else [value, value]
        if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
            raise ValueError("write a number from 1, or [fewest, most]")
        return value

    @field_validator("offload")
    @classmethod
    def _fits_the_stage(cls, value: str, info: ValidationInfo) -> str:
        needed, stage = {"none": 0, "optimizer": 1, "parameters": 3}[value], info.data.get("zero_stage", 3)
        if stage < needed:
            raise ValueError(f"needs zero_stage {needed} or more, not {stage}")
        return value
