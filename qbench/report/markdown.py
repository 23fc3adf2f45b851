"""A report as Markdown, short enough for a pull request: sentences, one table, details folded away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qbench.records.record import Record
from qbench.report.content import Content, gather_content
from qbench.report.tables import Table, cell_text

MOST_ROWS = 40
"""Rows of one table; a comment on GitHub holds 65,536 characters."""

MOST_SENTENCES = 12

_SPECIAL = re.compile(r"([\\`*\[\]|~])")


def render_markdown(records: Sequence[Record], title: str) -> str:
    """Return the report as GitHub-flavoured Markdown; all text of records is escaped."""
    return markdown_text(gather_content(records), title)


def markdown_text(content: Content, title: str) -> str:
    """Return the Markdown of content that is gathered already; see `render_markdown`."""
    parts = [f"## {escaped(title)}", *_bullets(content.headline, content.accuracy)]
    parts += [f"> **Note:** {escaped(warning)}" for warning in content.warnings]
    if content.comparison is not None:
        parts.append(table_text(content.comparison.first(MOST_ROWS)))
    folded = {
        "Not compared: more than precision differs": content.near,
        "Points, planned and measured": content.points,
        "Validity: what was found against the measurements": content.findings,
        "Where the memory of the GPU went": content.card,
        "What fits": content.fits,
        "Did not end ok": content.failures,
        "Caveats": content.caveats,
        "Weights that quantization or LoRA did not reach": content.skipped,
        "Environment": content.environment,
    }
    parts += [_details(name, table) for name, table in folded.items() if table is not None]
    parts.append(" ".join(escaped(sentence) for sentence in (content.scope, *content.validity)))
    return "\n\n".join(parts) + "\n"


def _bullets(headline: Sequence[str], accuracy: str | None) -> list[str]:
    sentences = [*headline[:MOST_SENTENCES], *([accuracy] if accuracy else [])]
    return ["\n".join(f"- {escaped(sentence)}" for sentence in sentences)]


def _details(name: str, table: Table) -> str:
    return f"<details><summary>{name}</summary>\n\n{table_text(table.first(MOST_ROWS))}\n\n</details>"


def table_text(table: Table) -> str:
    """Return a table as Markdown, numbers to the right, its notes below."""
    numeric = [
        any(isinstance(row[index], (int, float)) and not isinstance(row[index], bool) for row in table.rows)
        for index in range(len(table.columns))
    ]
    units = [column.unit for column in table.columns]
    lines = [
        _line(column.title for column in table.columns),
        "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
        *(
            _line(cell_text(value, unit) for value, unit in zip(row, units, strict=True))
            for row in table.rows
        ),
    ]
    return "\n\n".join(["\n".join(lines), *(escaped(note) for note in table.notes)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def escaped(text: str) -> str:
    """Return text on one line in which neither Markdown nor HTML finds markup."""
    one_line = " ".join(text.split())
    plain = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)
