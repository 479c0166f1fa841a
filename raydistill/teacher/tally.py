"""Where asking actors and the job that runs them meet: commits go one way, the word to stop the other."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydistill.core.answers import Commit


class Tally:
    """Keeps what actors committed until the job takes it; an actor of its own, on the job's node."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._commits: list[Commit] = []
        self._stopped = False

    def report(self, commits: list[Commit]) -> bool:
        """Take commits of an asking actor; return whether it is to stop."""
        self._commits += commits
        return self._stopped

    def take(self) -> list[Commit]:
        """Return the commits since the last call."""
        commits, self._commits = self._commits, []
        return commits

    def stop(self) -> None:
        """Let asking actors end after the rows that they have at the teacher."""
        self._stopped = True


def start_tally() -> Any:
    """Start a Tally on this node and return its handle; it ends with the last reference to it."""
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Tally).remote()
