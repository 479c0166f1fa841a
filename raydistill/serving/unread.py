"""A version that an alias names and that cannot be read or loaded now: why, and when it is tried again."""

from dataclasses import dataclass

LONGEST_PAUSE = 32  # looks at the registry: a minute, by default


@dataclass(frozen=True)
class Unread:
    """The last of its failures in a row. Each next try comes twice as late, for a try may cost a whole download.

    Attributes:
        reason: why it failed.
        look: the number of the look at the registry at which it failed.
        num_moves: how many moves the model's aliases had then; a new one is a reason to try at once.
        failures: how many there were in a row.
    """

    reason: str
    look: int
    num_moves: int
    failures: int = 1

    def is_due(self, look: int, num_moves: int) -> bool:
        """Return whether it is tried again at this look."""
        return num_moves > self.num_moves or look >= self.look + min(2 ** (self.failures - 1), LONGEST_PAUSE)
