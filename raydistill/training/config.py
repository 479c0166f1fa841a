"""The `[train]` table."""

from typing import Literal

from pydantic import Field

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
    """Both sides' logits are divided by it; above 1 unlikely tokens count more. Recorded top_logprobs are of 1."""

    lora_rank: int = Field(32, ge=1, le=512)
    lora_alpha: int | None = Field(None, ge=1)
    """Scaling is alpha / rank; by default alpha = rank, so that the learning rate does not depend on the rank."""
    num_epochs: int = Field(3, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Stops after so many steps, whatever num_epochs says."""
    batch_size: int = Field(8, ge=1)
    """Examples in a step, over all workers."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Examples that a worker packs into one sequence; by default as many as fit 2,048 tokens."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """By default from the model's width: raydistill.get_lr."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises; from there it falls in a line to 0."""
    seed: int = Field(0, ge=0)
    """Of the LoRA weights and of the order of the rows."""
    raw_fraction: float = Field(0.1, ge=0, le=1)
    """Share of the examples shown as the plain encoded query, without the chat template."""
    renderer: Literal["chat", "raw"] = "chat"
    max_length: int | None = Field(None, ge=2)
    """Examples of more tokens are left out, counted; by default what the student can read."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the frozen base's weights and of matrix products; adapters and optimizer are float32 always.
    By default bfloat16 on GPUs and on CPUs that have units for it, else float32."""

    num_workers: int = Field(2, ge=1)
    use_gpu: bool | None = None
    """By default where the cluster has a GPU for every worker."""
    threads_per_worker: int = Field(1, ge=1)
    """CPU threads, and Ray's logical CPUs, of a worker."""
    placement: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    """Ray's placement of the workers: on few nodes, on many, or each on a node of its own."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed's ZeRO: what is split over the workers (1 optimizer, 2 gradients, 3 weights)."""
    checkpoint_every: int = Field(25, ge=1)
    """Steps between checkpoints and validations; the end always has one."""
    max_failures: int = Field(2, ge=0)
    """How often a lost worker is replaced, from the last checkpoint."""
