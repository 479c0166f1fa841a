"""Where asking actors and the job that runs them meet: commits go one way, the word to go on or to stop the other.

It also knows how far each request object is, whichever actor worked on it.
"""

from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydistill.core.answers import Commit

Word = Literal["wait", "go", "stop"]
State = Literal["new", "begun", "ended"]


class Tally:
    """Keeps what actors committed until the job takes it; an actor of its own, on the job's node."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._commits: list[Commit] = []
        self._ended: list[str] = []
        self._states: dict[str, State] = {}  # of request objects that were begun
        self._word: Word = "wait"
        self._num_replicas = 1

    def begin(self, request: str) -> State:
        """Note that an actor begins with a request object, and return what was known of it."""
        state = self._states.get(request, "new")
        self._states[request] = "begun" if state == "new" else state
        return state

    def end(self, request: str) -> None:
        """Note that all of a request object that is to be asked is committed, and reported."""
        self._states[request] = "ended"
        self._ended.append(request)

    def report(self, commits: list[Commit]) -> tuple[Word, int]:
        """Take commits of an asking actor; return the word, and how many replicas the teacher has."""
        self._commits += commits
        return self._word, self._num_replicas

    def take(self) -> tuple[list[Commit], list[str]]:
        """Return the commits since the last call, and the request objects that have ended since."""
        taken = self._commits, self._ended
        self._commits, self._ended = [], []
        return taken

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
