"""Where asking actors and the job that runs them meet: commits go one way, the word to go on or to stop the other."""

from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydistill.core.answers import Commit

Word = Literal["wait", "go", "stop"]


class Tally:
    """Keeps what actors committed until the job takes it; an actor of its own, on the job's node."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._commits: list[Commit] = []
        self._word: Word = "wait"
        self._num_replicas = 1

    def report(self, commits: list[Commit]) -> tuple[Word, int]:
        """Take commits of an asking actor; return the word, and how many replicas the teacher has."""
        self._commits += commits
        return self._word, self._num_replicas

    def take(self) -> list[Commit]:
        """Return the commits since the last call."""
        commits, self._commits = self._commits, []
        return commits

    def count_replicas(self, number: int) -> None:
        """Set how many replicas the teacher has."""
        self._num_replicas = number

    def say(self, word: Word) -> None:
        """Set the word: to "go" on with all rows, to "wait" with all but the first, or to "stop"."""
        self._word = word


def start_tally() -> Any:
    """Start a Tally on this node and return its handle; it ends with the last reference to it."""
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Tally).remote()
