"""Printing: results go to stdout, all else to stderr."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

from qbench.units import printable

if TYPE_CHECKING:
    from qbench.report.table import Table


_CONTROL_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|(?<=#)#(?=\\[)")
"""What JSON may hold as it is and a terminal or GitHub's log acts on; it is only found within strings."""

PIPED_WIDTH = 120
"""Columns of a table where stdout is no terminal, which would otherwise count as 80."""

LONGEST_NAME = 34
"""Characters of the longest name in the catalog of cards, which stays on one line."""


def print_error(message: str) -> None:
    """Print a message on stderr, each line as an error of its own."""
    for line in message.splitlines() or [""]:
        print(f"qbench: {_harmless(line)}", file=sys.stderr)


def print_note(message: str) -> None:
    """Print progress or advice on stderr."""
    for line in message.split("\n"):
        print(_harmless(line), file=sys.stderr)


def print_text(message: str) -> None:
    """Print a part of a result on stdout."""
    for line in message.split("\n"):
        print(_harmless(line))


def print_sentence(sentence: str) -> None:
    """Print a sentence on stdout, on a terminal as lines that it need not break; a pipe gets one line."""
    from qbench.report.terminal.table import wrapped

    print_text("\n".join(wrapped(sentence)) if sys.stdout.isatty() else sentence)


def print_command(line: str, *, to_stderr: bool = False) -> None:
    """Print a line that a CI system acts on."""
    print(printable(line), file=sys.stderr if to_stderr else sys.stdout)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout. Raises ValueError, before anything is printed, for NaN."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    print(_CONTROL_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _harmless(line: str) -> str:
    """Return a line on which neither a terminal nor a CI system acts; tabs stay as they are."""
    return _no_command("\t".join(map(printable, line.split("\t"))))


def _no_command(line: str) -> str:
    """Return a line that GitHub Actions does not take for a command, as `::error::` and `##[error]` are.

    See actions/runner, src/Runner.Common/ActionCommand.cs.
    """
    text = line.replace("##[", "#\\#[")
    return text.replace("::", "\\::", 1) if text.lstrip().startswith("::") else text


def print_table(table: Table, title: str = "") -> None:
    """Print a table on stdout, its notes below it; numbers are right-aligned, long tables never cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    drawn = RichTable(
        title=Text(printable(title)) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        title_style="bold",
    )
    rows = [[printable(text) for text in row] for row in table.texts()]
    for number, column in enumerate(table.columns):
        widest = max((len(row[number]) for row in rows), default=0)
        # A name broken over lines can neither be read nor copied; a longer text leaves no room for the rest.
        drawn.add_column(
            Text(printable(column.title)),
            justify="right" if column.unit else "left",
            overflow="fold",
            no_wrap=number == 0 and widest <= LONGEST_NAME,
        )
    for row in rows:
        drawn.add_row(*map(Text, row))
    with console.capture() as captured:
        console.print(drawn)
        for note in table.notes:
            console.print(Text(printable(note), style="dim"))
    for line in captured.get().splitlines():
        print(_no_command(line.rstrip()))
