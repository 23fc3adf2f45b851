"""The memory-throughput frontier: what a point needs against what it gives, and which points none beats."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from qbench.comparison.frontier import FrontierPoint, frontier
from qbench.comparison.results import Result
from qbench.records.metrics import METRICS
from qbench.report.charts.style import (
    NEUTRAL,
    PRECISION_COLOURS,
    Chart,
    ValueAxis,
    byte_axis,
    new_figure,
    safe,
)
from qbench.scenario.schema import PRECISIONS
from qbench.units import format_bytes, format_value
from qbench.words.basis import basis
from qbench.words.settings import short_model

FEWEST_POINTS = 4
"""Points below which there is no choice to draw."""

MOST_POINTS = 1000
_SPEED = METRICS["tokens_per_s"]


def memory_against_speed(results: Sequence[Result]) -> Chart | None:
    """Return memory against throughput of the model with most points; None where there are few."""
    groups: dict[tuple[str, str], list[FrontierPoint]] = {}
    for point in frontier(results):
        groups.setdefault((point.result.kind, point.result.point.model), []).append(point)
    points = max(groups.values(), key=len, default=[])
    if len(points) < FEWEST_POINTS:
        return None
    # What no other point beats is drawn in any case.
    drawn = sorted(points, key=lambda point: not point.is_optimal)[:MOST_POINTS]
    first, best = points[0], sum(point.is_optimal for point in points)
    capped = f" {MOST_POINTS:,} of {len(points):,} are drawn." if len(points) > MOST_POINTS else ""
    return Chart(
        name="frontier",
        title="Memory against throughput",
        caption=f"{short_model(first.result.point.model)}; {basis(first.result)}. Filled: {best} of "
        f"{len(points)} points, that no other point beats in both. Up and to the left is better.{capped}",
        figures=(_figure(drawn),),
        results=tuple(point.result for point in drawn),
    )


def _figure(points: Sequence[FrontierPoint]) -> go.Figure:
    axis = byte_axis(point.memory_bytes for point in points)
    figure = new_figure(
        x_title=f"{METRICS[points[0].metric].title} ({axis.unit})",
        y_title=f"{_SPEED.title} ({_SPEED.unit})",
        height=400,
    )
    best = sorted((point for point in points if point.is_optimal), key=lambda point: point.memory_bytes)
    figure.add_scatter(
        x=[axis.scaled(point.memory_bytes) for point in best],
        y=[point.tokens_per_s for point in best],
        mode="lines",
        name="frontier",
        line={"color": NEUTRAL, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
    )
    for precision in PRECISIONS:
        members = [point for point in points if point.result.point.precision == precision]
        if members:
            _add_dots(figure, precision, members, axis)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return figure


def _add_dots(figure: go.Figure, precision: str, points: Sequence[FrontierPoint], axis: ValueAxis) -> None:
    figure.add_scatter(
        x=[axis.scaled(point.memory_bytes) for point in points],
        y=[point.tokens_per_s for point in points],
        mode="markers",
        name=precision,
        marker={
            "color": PRECISION_COLOURS[precision],
            "size": 9,
            "symbol": ["circle" if point.is_optimal else "circle-open" for point in points],
        },
        customdata=[
            f"{safe(point.result.point.label)}: {format_bytes(point.memory_bytes)}, "
            f"{format_value(point.tokens_per_s, _SPEED.unit)}"
            for point in points
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
