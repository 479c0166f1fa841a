"""The entry of a training worker; light until it is called, because the driver imports it too."""

from typing import Any


def run_worker(settings: dict[str, Any]) -> None:
    """Train: Ray Train calls this on every worker with the same {"job": Job}."""
    from raydistill.training.loop import train

    train(settings["job"])
