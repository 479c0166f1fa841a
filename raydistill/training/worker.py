"""The entry of a training worker under Ray Train; light until it is called, because the driver imports it too."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydistill.training.job import Job
    from raydistill.training.steps import Setting


def run_worker(settings: dict[str, Any]) -> None:
    """Train: Ray Train calls this on every worker with the same {"job": Job}."""
    from raydistill.training.loop import train

    job = settings["job"]
    train(job, _prepare(job))


def _prepare(job: "Job") -> "Setting":
    """Set up this process, threads and quiet libraries, and return where it stands."""
    import warnings

    import ray.train
    import ray.train.torch
    import torch
    import transformers

    from raydistill.training.batches import PACK_TOKENS
    from raydistill.training.steps import Setting

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)  # DeepSpeed's older names
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    if device.type == "cpu":
        torch.set_num_threads(job.engine.threads)
    context = ray.train.get_context()
    ranks = (context.get_world_rank(), context.get_world_size())
    pack_tokens = job.engine.pack_tokens or PACK_TOKENS["cuda" if device.type == "cuda" else "cpu"]
    return Setting(*ranks, device, job.dtype, job.engine.micro_batch_size, pack_tokens, job.objective)
