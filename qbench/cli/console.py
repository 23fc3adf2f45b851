"""Printing: results go to stdout, all else to stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbench.report.tables import Table


PIPED_WIDTH = 120
"""Columns of a table where stdout is no terminal, which would otherwise count as 80."""


def print_error(message: str) -> None:
    """Print a message on stderr, each line as an error of its own."""
    for line in message.splitlines() or [""]:
        print(f"qbench: {line}", file=sys.stderr)


def print_note(message: str) -> None:
    """Print a line of progress or advice on stderr."""
    print(message, file=sys.stderr)


def print_text(message: str) -> None:
    """Print a line of a result on stdout."""
    print(message)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def print_table(table: Table, title: str = "") -> None:
    """Print a table on stdout, its notes below it; numbers are right-aligned, long tables never cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from qbench.report.tables import cell_text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    drawn = RichTable(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for column in table.columns:
        drawn.add_column(Text(column.title), justify="right" if column.unit else "left", overflow="fold")
    for row in table.rows:
        pairs = zip(row, table.columns, strict=True)
        drawn.add_row(*(Text(cell_text(value, column.unit)) for value, column in pairs))
    with console.capture() as captured:
        console.print(drawn)
    for line in captured.get().splitlines():
        print(line.rstrip())
    for note in table.notes:
        console.print(Text(note, style="dim"))
