"""Aligned columns of plain text, kept to the width of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.units import NOT_AVAILABLE

WIDTH = 100
"""Columns of a terminal that the text keeps to, as far as names allow."""

GAP = "  "
OPTIONAL_COLUMNS = ("At rest", "Trainable", "Reserved")
"""Columns that give way, in this order, when a table is wider than WIDTH."""

Cells = Sequence[str]


def fitted(columns: dict[str, list[str]], count: int) -> list[str]:
    """Return the columns as an aligned table, less those that are unknown or give way to the width."""
    kept = {title: cells for title, cells in columns.items() if set(cells) != {NOT_AVAILABLE}}
    for title in OPTIONAL_COLUMNS:
        if width(kept) > WIDTH:
            kept.pop(title, None)
    titles = list(kept)
    rows = [titles, *([kept[title][row] for title in titles] for row in range(count))]
    align = "".join("<" if title in ("model", "precision") else ">" for title in titles)
    header, *body = aligned(rows, align)
    return [header, "-" * min(max(map(len, [header, *body])), WIDTH), *body]


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
