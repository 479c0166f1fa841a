"""The report as a table of at most 80 columns, and as files beside one another in storage."""

import json
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from raydistill.core import storage
from raydistill.core.uris import join
from raydistill.evaluation.page import render_page
from raydistill.evaluation.summary import NAMES, headings, sentences, table_rows


def write_report(report: dict[str, Any], uri: str) -> None:
    """Write `report.html` and then `report.json` below a folder, each whole or not at all.

    Args:
        report: of `evaluate`.
        uri: ROOT/reports/NAME/VERSION.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    storage.write_bytes(join(uri, "report.html"), render_page(report).encode())
    storage.write_bytes(join(uri, "report.json"), text.encode())


def report_table(report: dict[str, Any]) -> Group:
    """Return the report as a table and a few sentences, for a terminal of 80 columns or more."""
    model, held_out = report["model"], report["held_out"]
    table = Table(
        title=f"{model['name']} {model['version']}: {held_out['queries']} held-out queries, "
        f"{held_out['teacher_tokens']:,} teacher tokens",
        title_justify="left",
    )
    table.add_column("")
    names = headings(report)
    for name in names:  # four columns fit with their names on two lines
        heading = name if len(names) == len(NAMES) else name.replace(" ", "\n", 1)
        table.add_column(heading, justify="right", no_wrap=True)
    for row in table_rows(report):
        table.add_row(*row)
    return Group(table, *(Text(sentence) for sentence in sentences(report)))
