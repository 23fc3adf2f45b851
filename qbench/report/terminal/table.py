"""Aligned columns of plain text, kept to the width of a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from qbench.units import NOT_AVAILABLE

WIDTH = 100
"""Columns that text keeps to, as far as names allow, where the terminal has as many."""

LEAST_TEXT = 24
"""Columns reserved for the text at the end of a row, however narrow the terminal."""

NO_BREAK = "\N{NO-BREAK SPACE}"
"""Keeps a number and its unit on one line of a text; it is printed as a space."""

GAP = "  "
OPTIONAL_COLUMNS = ("At rest", "Trainable", "Reserved")
"""Columns that give way, in this order, when a table is wider than the terminal."""

Cells = Sequence[str]


def line_width() -> int:
    """Return the columns that lines keep to: those of the terminal, at most WIDTH, which a pipe has."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def wrapped(text: str) -> list[str]:
    """Return a text as lines that keep to the terminal."""
    return textwrap.wrap(text, line_width(), break_long_words=False, break_on_hyphens=False)


def fitted(columns: dict[str, list[str]], count: int) -> list[str]:
    """Return the columns as an aligned table, less those that are unknown or give way to the width."""
    kept = {title: cells for title, cells in columns.items() if set(cells) != {NOT_AVAILABLE}}
    for title in OPTIONAL_COLUMNS:
        if width(kept) > line_width():
            kept.pop(title, None)
    titles = list(kept)
    rows = [titles, *([kept[title][row] for title in titles] for row in range(count))]
    align = "".join("<" if title in ("model", "precision") else ">" for title in titles)
    header, *body = aligned(rows, align)
    return [header, "-" * min(max(map(len, [header, *body])), line_width()), *body]


def width(columns: dict[str, list[str]]) -> int:
    """Return the columns of a terminal that a table takes."""
    widths = [max(map(len, [title, *cells])) for title, cells in columns.items()]
    return sum(widths) + len(GAP) * (len(widths) - 1)


def aligned(rows: Sequence[Cells], align: str) -> list[str]:
    """Return rows as lines; `align` gives < or > for each column, and columns after it stay as they are."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(align))] if rows else []
    return [
        GAP.join(
            [*(f"{row[i]:{align[i]}{widths[i]}}" for i in range(len(align))), *row[len(align) :]]
        ).rstrip()
        for row in rows
    ]


def with_text(rows: Sequence[Cells], align: str, columns: int) -> list[str]:
    """Return rows as an aligned table whose last column is text, which goes on below itself."""
    if not rows:
        return []
    heads = aligned([row[:-1] for row in rows], align)
    indent = max(map(len, heads)) + len(GAP)
    lines = []
    for head, row in zip(heads, rows, strict=True):
        first, *more = textwrap.wrap(row[-1], max(columns - indent, LEAST_TEXT), break_on_hyphens=False) or [
            ""
        ]
        lines += [f"{head:<{indent}}{first}".rstrip(), *(" " * indent + part for part in more)]
    return [line.replace(NO_BREAK, " ") for line in lines]
