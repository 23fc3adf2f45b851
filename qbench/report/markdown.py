"""A report as Markdown, short enough for a pull request: sentences, one table, details folded away."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qbench.report.content import Content
from qbench.report.table import Table
from qbench.units import printable
from qbench.words.phrases import Statement

MOST_ROWS = 40
"""Rows of one table; a comment on GitHub holds 65,536 characters."""

MOST_SENTENCES = 12

COMMENT_LIMIT = 65_536
"""Characters of a comment on GitHub."""

SUMMARY_LIMIT = 1 << 20
"""Bytes of the summary of a step in GitHub Actions
(https://docs.github.com/actions/reference/workflow-commands-for-github-actions, "Step isolation and limits").
"""

MOST_COMPARED = 12
"""Rows of the comparison in a pull request."""

ROOM_FOR_NOTICE = 100
LONG_CELL = 400
"""Characters of one cell; a name or an error may be longer than all else."""

_SPECIAL = re.compile(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))")
"""What Markdown reads as markup; underscores within a word are not."""


def markdown_text(content: Content, title: str) -> str:
    """Return the report as GitHub-flavoured Markdown; all text of records is escaped."""
    return "\n\n".join([*_lead(content, title), *_folded(content), _footer(content)]) + "\n"


def comment_text(content: Content, title: str, limit: int = COMMENT_LIMIT) -> str:
    """Return the form for a pull request: verdict, sentences, the comparison and details folded away.

    It has at most `limit` characters and, in UTF-8, bytes: what does not fit is left out, and said to be. Of
    the footer as many sentences are kept as there is room for; where not even the notice fits, it is empty.
    """
    room = limit - ROOM_FOR_NOTICE
    if room < 0:
        return ""
    footer, room, lost = _fitting(_footer_sentences(content), room, 1)
    kept, room, left_out = _fitting([*_lead(content, title, MOST_COMPARED), *_folded(content)], room, 2)
    left_out += bool(lost)
    if left_out:
        sections = "1 section is" if left_out == 1 else f"{left_out} sections are"
        kept.append(f"{sections} too long for this place and left out; the report has all.")
    return "\n\n".join([*kept, *([" ".join(footer)] if footer else [])]) + "\n"


def _fitting(parts: Iterable[str], room: int, gap: int) -> tuple[list[str], int, int]:
    """Return the parts that fit, each with a gap of so many bytes; the room that is left; how many do not."""
    kept: list[str] = []
    left_out = 0
    for part in parts:
        size = _size(part) + gap
        if size <= room:
            kept.append(part)
            room -= size
        else:
            left_out += 1
    return kept, room, left_out


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _lead(content: Content, title: str, most_rows: int = MOST_ROWS) -> list[str]:
    """Return what stands above the details: title, verdict, sentences, warnings and the comparison."""
    first, *rest = content.sentences or [Statement("No records.")]
    others = [
        *rest[: MOST_SENTENCES - 1],
        *content.quality[:MOST_SENTENCES],
        *([content.accuracy] if content.accuracy else []),
    ]
    parts = [f"## {escaped(title)}", f"**{escaped(first)}**"]
    if others:
        parts.append("\n".join(f"- {escaped(sentence)}" for sentence in others))
    parts += [f"> **Note:** {escaped(warning)}" for warning in content.warnings]
    if content.comparison is not None:
        parts.append(table_text(content.comparison.first(most_rows)))
    return parts


def _folded(content: Content) -> list[str]:
    folded = {
        "Not compared: more than precision differs": content.near,
        "Dry runs of programs": content.programs,
        "Points, planned and measured": content.points,
        "Quality: losses on one text, and errors of quantized weights": content.losses,
        "Modules that quantization changed most": content.worst,
        "Validity: what was found against the measurements": content.findings,
        "Where the memory of the GPU went": content.card,
        "What fits": content.fits,
        "Did not end ok": content.failures,
        "Caveats": content.caveats,
        "Weights that quantization or LoRA did not reach": content.skipped,
        "Environment": content.environment,
        "Raw records": content.records,
    }
    return [_details(name, table) for name, table in folded.items() if table is not None]


def _footer(content: Content) -> str:
    return " ".join(_footer_sentences(content))


def _footer_sentences(content: Content) -> list[str]:
    return [escaped(sentence) for sentence in (content.scope, *content.validity)]


def _details(name: str, table: Table) -> str:
    return f"<details><summary>{name}</summary>\n\n{table_text(table.first(MOST_ROWS))}\n\n</details>"


def table_text(table: Table) -> str:
    """Return a table as Markdown, numbers to the right, its notes below."""
    numeric = [
        any(isinstance(row[index], (int, float)) and not isinstance(row[index], bool) for row in table.rows)
        for index in range(len(table.columns))
    ]
    lines = [
        _line(column.title for column in table.columns),
        "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
        *map(_line, table.texts()),
    ]
    return "\n\n".join(["\n".join(lines), *(escaped(note) for note in table.notes)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(escaped(_shortened(cell)) for cell in cells) + " |"


def _shortened(text: str) -> str:
    return text if len(text) <= LONG_CELL else f"{text[:LONG_CELL]}... ({len(text):,} characters)"


def escaped(text: str) -> str:
    """Return text on one line in which neither Markdown nor HTML finds markup."""
    one_line = printable(" ".join(text.split()))
    plain = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)
