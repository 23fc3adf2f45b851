"""What the charts of a report draw, as rows of plain values from which each can be drawn again."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

from qbench.report.charts.style import WRAP, Chart
from qbench.report.tables import Numbers, record_ranges

COLUMNS = ("chart", "figure", "series", "x", "x_axis", "y", "y_axis", "z", "text", "records")
"""`records` are the numbers of the records that the chart draws."""

_BREAK = re.compile(r"<br>")
_MARKUP = re.compile(rf"</?b>|{WRAP}")


def chart_rows(charts: Iterable[Chart], numbers: Numbers) -> Iterator[dict[str, Any]]:
    """Yield one row for each mark of each chart, in the unit of its axis; bars and maps have names as y."""
    for chart in charts:
        ranges = record_ranges(chart.results, numbers)
        for place, figure in enumerate(chart.figures):
            # Plain dictionaries: each look into one of plotly's objects checks it anew.
            drawn = figure.to_plotly_json()
            x_axis, y_axis = drawn["layout"]["xaxis"], drawn["layout"]["yaxis"]
            shared = {
                "chart": chart.name,
                "figure": place,
                "x_axis": x_axis["title"]["text"],
                "y_axis": y_axis["title"]["text"],
                "records": str(ranges) if ranges else None,
            }
            names = dict(zip(y_axis.get("tickvals", ()), y_axis.get("ticktext", ()), strict=True))
            for trace in drawn["data"]:
                for mark in _marks(trace, names):
                    yield {**shared, "series": trace.get("name"), **mark}


def _marks(trace: dict[str, Any], names: dict[Any, str]) -> Iterator[dict[str, Any]]:
    """Yield the marks of a trace; `names` stand at places of an upright axis."""
    x, y = trace["x"], [plain(names[value]) if value in names else value for value in trace["y"]]
    if trace["type"] == "heatmap":
        for row, values in enumerate(trace["z"]):
            for column, value in enumerate(values):
                yield {"x": x[column], "y": y[row], "z": value, "text": trace["text"][row][column]}
        return
    notes = trace.get("customdata") or [None] * len(x)
    for index, note in enumerate(notes):
        yield {"x": x[index], "y": y[index], "text": None if note is None else plain(note)}


def plain(text: Any) -> str:
    """Return a label without the markup that plotly reads."""
    return html.unescape(_MARKUP.sub("", _BREAK.sub(" ", str(text))))
