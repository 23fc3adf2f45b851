"""Tables as a reader sees them."""

from __future__ import annotations

from qbench.report.table import Table


def texts(table: Table) -> list[dict[str, str]]:
    """Return each row as a dictionary of cell texts by column title."""
    titles = [column.title for column in table.columns]
    return [dict(zip(titles, row, strict=True)) for row in table.texts()]
