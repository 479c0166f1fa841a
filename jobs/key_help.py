"""What `python -m jobs.JOB --help` prints: every key that the job reads."""

import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from raydistill.core.config import Key, Section, describe_keys

WIDEST, NAME_INDENT, TEXT_INDENT = 100, "  ", "      "


def describe_command(tables: Mapping[str, type[Section]], job: str | None) -> str:
    """Return the help of the running job, as wide as the terminal.

    Args:
        tables: the class of each table that the job reads.
        job: the table whose keys need no table's name in front, or None.
    """
    width = min(WIDEST, shutil.get_terminal_size().columns)
    command = f"python -m jobs.{Path(sys.argv[0]).stem} [TASK.toml] [KEY=VALUE ...]"
    about = (
        'A value is written as in TOML (3, 0.5, true, ["a", "b"]), and text as it is. An argument wins over the '
        "file, and what the file's [task] says need not be said again. After a key stands what is allowed, and after = "
        "what holds where nothing is said."
    )
    lines = [command, "", *textwrap.wrap(about, width)]
    for table, section in tables.items():
        keys = "KEY=VALUE" if table == job else f"{table}.KEY=VALUE"
        lines += ["", f"[{table}]   on the command line: {keys}"]
        for key in describe_keys(section):
            lines += _describe(key, width)
    return "\n".join(lines)


def _describe(key: Key, width: int) -> list[str]:
    head = f"{key.name}: {key.allowed}"
    if key.default is None:
        head += ", required"
    elif key.default:
        head += f" = {key.default}"
    if len(head) > 3 * width:
        head = f"{head[: 3 * width]} ..."
    return [
        *textwrap.wrap(head, width, initial_indent=NAME_INDENT, subsequent_indent=TEXT_INDENT),
        *textwrap.wrap(key.meaning, width, initial_indent=TEXT_INDENT, subsequent_indent=TEXT_INDENT),
    ]
