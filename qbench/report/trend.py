"""The history of runs as a table, plain JSON values and a chart with its change points."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qbench.comparison.trend import FEWEST_RUNS, Series, trend
from qbench.report.table import Table, plain_table
from qbench.units import format_value
from qbench.words.basis import basis_text
from qbench.words.trend import moved_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from qbench.records.record import Record
    from qbench.report.charts.style import Chart

MOST_CHARTS = 12
"""Series that are drawn; those with change points come first."""

MOST_SEARCHED = 100
"""Series up to which a report looks for change points, which takes some hundredths of a second each."""


def trend_table(series: Iterable[Series]) -> Table:
    """Return a row for each level of each series: its first run, how many, their median, the step to it."""
    titles = ("Point", "Metric", "From run", "Since", "Runs", "Median", "Change", "Verdict", "What changed")
    rows = [row for one in series for row in _rows(one)]
    return plain_table(titles, rows)


def _rows(series: Series) -> list[tuple[str, ...]]:
    starts = [0, *(change.index for change in series.changes)]
    ends = [*starts[1:], len(series.runs)]
    rows: list[tuple[str, ...]] = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        change = series.changes[number - 1] if number else None
        level = change.after if change else _first_level(series)
        step = "" if change is None or change.change is None else f"{100 * change.change:+.1f} %"
        rows.append(
            (
                series_name(series) if not number else "",
                series.metric if not number else "",
                series.runs[start].run_id,
                series.runs[start].created_at[:16].replace("T", " "),
                str(end - start),
                format_value(level, series.unit),
                step,
                change.direction if change else "",
                "; ".join(map(moved_text, change.software)) if change else "",
            )
        )
    return rows


def _first_level(series: Series) -> float:
    return series.changes[0].before if series.changes else statistics.median(s.value for s in series.runs)


def series_name(series: Series) -> str:
    """Return which point a series is of, and where it was planned for or measured."""
    if series.device == "null":
        return f"{series.point.label}, {basis_text(series.kind, series.device, series.machine)}"
    return f"{series.point.label}, {basis_text(series.kind, series.machine or series.device)}"


def trend_document(series: Iterable[Series]) -> list[dict[str, Any]]:
    """Return the series as plain JSON values."""
    return [
        {
            "point_id": one.point.point_id,
            "point": one.point.label,
            "kind": one.kind,
            "device": one.device,
            "machine": one.machine or None,
            "metric": one.metric,
            "unit": one.unit,
            "samples": [
                {"run_id": sample.run_id, "created_at": sample.created_at, "value": sample.value}
                for sample in one.runs
            ],
            "changes": [
                {
                    "run_id": one.runs[change.index].run_id,
                    "created_at": one.runs[change.index].created_at,
                    "before": change.before,
                    "after": change.after,
                    "change": change.change,
                    "verdict": change.direction,
                    "what_changed": [moved_text(each) for each in change.software],
                }
                for change in one.changes
            ],
        }
        for one in series
    ]


def history_charts(records: Sequence[Record]) -> list[Chart]:
    """Return the section of history for records of several runs; without Apache Otava it has no rings."""
    if len({record.run_id for record in records}) < FEWEST_RUNS:
        return []
    series = trend(records, find_changes=False)
    if len(series) <= MOST_SEARCHED and find_spec("otava") is not None:
        series = trend(records)
    chart = trend_chart(series)
    return [] if chart is None else [chart]


def trend_chart(series: Sequence[Series]) -> Chart | None:
    """Return a section with a figure for each series, those with change points first; None for no series."""
    from qbench.report.charts.style import Chart

    if not series:
        return None
    shown = sorted(series, key=lambda one: not one.changes)[:MOST_CHARTS]
    left_out = f" {len(series) - len(shown)} more are not drawn." if len(series) > len(shown) else ""
    return Chart(
        name="history",
        title="History",
        caption=f"The median of each run in order of time; a ring is the first run of a new level.{left_out}",
        figures=tuple(trend_figure(one) for one in shown),
        results=(),
    )


def trend_figure(series: Series) -> go.Figure:
    """Return a series as a line over time, with a ring at each change point."""
    import plotly.graph_objects as go

    from qbench.report.charts.style import ValueAxis, byte_axis, new_figure, safe

    values = [sample.value for sample in series.runs]
    axis = byte_axis(values) if series.unit == "bytes" else ValueAxis(series.unit, 1)
    times = [sample.created_at for sample in series.runs]
    texts = [f"{safe(s.run_id)}: {safe(format_value(s.value, series.unit))}" for s in series.runs]
    figure = new_figure(x_title=safe(series_name(series)), y_title=f"{series.metric} ({axis.unit})")
    figure.add_trace(
        go.Scatter(
            x=times,
            y=[axis.scaled(value) for value in values],
            name="one run",
            mode="lines+markers",
            line={"color": "#2C7FB8", "width": 1.5},
            hovertext=texts,
            hoverinfo="text",
        )
    )
    steps = series.changes
    if steps:
        figure.add_trace(
            go.Scatter(
                x=[times[step.index] for step in steps],
                y=[axis.scaled(values[step.index]) for step in steps],
                name="first of a new level",
                mode="markers",
                marker={"color": "#D55E00", "size": 14, "symbol": "circle-open", "line": {"width": 2}},
                hovertext=[
                    safe("; ".join(map(moved_text, step.software)) or "nothing known changed")
                    for step in steps
                ],
                hoverinfo="text",
            )
        )
    return figure
