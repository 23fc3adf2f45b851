"""A report as one HTML file that needs no network: text first, then charts, then what they stand on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from qbench.report.charts.all import charts
from qbench.report.charts.style import Chart
from qbench.report.content import Content
from qbench.report.fact_tables import metrics_table
from qbench.report.provenance import MOST_LISTED
from qbench.report.table import RecordRanges, Table, Value, cell_text, range_text
from qbench.report.tables import record_ranges

MOST_ROWS = 400
"""Rows of one table on the page; the CSV has all."""

LONG_TEXT = 36
"""Characters from which a cell's text may wrap."""

SOME_TEXT = 14
"""Characters from which a cell of words may take two or three lines, so that a table keeps to the page."""

FILTERED_ROWS = 12
"""Rows from which a table has a field to filter them."""

TALL_ROWS = 16
"""Rows from which a table scrolls in a frame of its own."""

SENTENCES_SHOWN = 6
"""Sentences above the fold; more are folded away."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A number or a range of numbers of records, or other text beside some."""

    text: str
    record: int | None
    """Number of the first record, where the page lists it, so that the text can be a link to it."""


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    key: str
    """What the column is sorted by; empty for unknown values, which go last."""
    style: str
    """CSS classes: n for numbers, some and long for text that may wrap."""
    pieces: tuple[_Piece, ...] = ()
    """The numbers of records that stand in place of the text."""


def html_page(content: Content, title: str, drawn: Sequence[Chart] | None = None) -> str:
    """Return the report as one self-contained HTML document.

    All text of records is escaped. Tables are cut to MOST_ROWS rows, and say so. `drawn` are the charts of
    the content where they are there already.
    """
    drawn = charts(content.results) if drawn is None else drawn
    template = _environment().get_template("report.html.jinja")
    return template.render(
        title=title,
        content=content,
        charts=[(chart, _pieces(record_ranges(chart.results, content.numbers))) for chart in drawn],
        headline=content.sentences,
        sentences_shown=SENTENCES_SHOWN,
        filtered_rows=FILTERED_ROWS,
        tall_rows=TALL_ROWS,
        metrics=metrics_table(),
        figures_json=_script_json(drawn),
        plotly_js=Markup(get_plotlyjs() if drawn else ""),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    environment.filters["cells"] = _rows_of_cells
    environment.filters["first_rows"] = lambda table: table.first(MOST_ROWS)
    return environment


def _unbroken(text: str) -> str:
    """Return text whose units stay on the line of their numbers."""
    for unit in ("%", "GiB", "MiB", "KiB"):
        text = text.replace(f" {unit}", f"\N{NO-BREAK SPACE}{unit}")
    return text


def _rows_of_cells(table: Table) -> list[list[_Cell]]:
    units = [column.unit for column in table.columns]
    return [[_cell(value, unit) for value, unit in zip(row, units, strict=True)] for row in table.rows]


def _cell(value: Value, unit: str) -> _Cell:
    if isinstance(value, RecordRanges):
        text = str(value)
        return _Cell(text, "", _text_style(text), _pieces(value))
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    key = "" if value is None else repr(value) if numeric else ""
    text = cell_text(value, unit)
    style = "n" if numeric or unit else _text_style(text)
    if value is None:
        style = f"{style} na".strip()
    return _Cell(text, key, style)


def _pieces(numbers: RecordRanges | None) -> tuple[_Piece, ...]:
    """Return the ranges of numbers, links where the page lists their first record, and how many more."""
    if numbers is None:
        return ()
    named = [_Piece(range_text(each), each[0] if each[0] <= MOST_LISTED else None) for each in numbers.ranges]
    return (*named, *([_Piece(f"and {numbers.more:,} more", None)] if numbers.more else []))


def _text_style(text: str) -> str:
    return "long" if len(text) > LONG_TEXT else "some" if len(text) > SOME_TEXT else ""


def _script_json(drawn: Sequence[Chart]) -> Markup:
    """Return the figures as JSON, by the id of their place, safe inside a script element."""
    figures = {
        f"chart-{chart.name}-{number}": json.loads(figure.to_json())
        for chart in drawn
        for number, figure in enumerate(chart.figures)
    }
    text = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
