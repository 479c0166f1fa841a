"""Faults of the input are collected, so that all of them are told at once."""

from collections.abc import Callable
from typing import TypeVar

from raydistill.core.errors import ConfigError, RaydistillError

Found = TypeVar("Found")


class SeveralFaults(ConfigError):
    """More than one thing is wrong with the input; the message lists all."""

    faults: list[RaydistillError]


def collect(faults: list[RaydistillError], find: Callable[[], Found]) -> Found | None:
    """Return what a function finds; where it refuses the input, add its faults to the list and return None."""
    try:
        return find()
    except SeveralFaults as several:
        faults += several.faults
    except RaydistillError as error:
        faults.append(error)
    return None


def raise_all(faults: list[RaydistillError]) -> None:
    """Raise the one fault as it is, several as one ConfigError that lists them; do nothing where there is none."""
    told = {str(fault): fault for fault in faults}  # two looks at one file say the same
    if len(told) == 1:
        raise faults[0]
    if told:
        several = SeveralFaults("several faults:\n  - " + "\n  - ".join(told))
        several.faults = faults
        raise several
