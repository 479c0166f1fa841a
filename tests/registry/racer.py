"""A process that promotes in a race: it looks, waits for the other, and moves the alias by what it saw."""

from raydistill.core.errors import ConflictError
from raydistill.registry.aliases import move_alias, read_aliases


def race(uri, label, rounds, barrier, told):
    """Try in each round to point `final` at a label; tell which rounds were won."""
    won = []
    for turn in range(rounds):
        seen = read_aliases(uri)
        barrier.wait(timeout=60)
        try:
            move_alias(uri, "final", label(turn), seen)
        except ConflictError:
            pass
        else:
            won.append(turn)
        barrier.wait(timeout=60)
    told.put(won)


def first_label(turn):
    """Return what the first racer wants: never what the alias names already."""
    return ("v0001", "v0003")[turn % 2]


def second_label(turn):
    """Return what the second racer wants."""
    return ("v0002", "v0004")[turn % 2]
