"""Tables as a reader sees them."""

from __future__ import annotations

from qbench.report.tables import Table, cell_text


def texts(table: Table) -> list[dict[str, str]]:
    """Return each row as a dictionary of cell texts by column title."""
    titles = [column.title for column in table.columns]
    units = [column.unit for column in table.columns]
    return [dict(zip(titles, map(cell_text, row, units), strict=True)) for row in table.rows]
