"""Charts of where the bytes are: at the peak, at rest, and on the way from 16 bit to 4 bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go

from qbench.comparison.results import Result
from qbench.records.metrics import BREAKDOWN
from qbench.report.charts.groups import (
    Group,
    alike,
    by_precision,
    conditions,
    plans_first,
    precisions,
    widest,
)
from qbench.report.charts.style import (
    BAR_HEIGHT,
    CATEGORY_COLOURS,
    FRAME_HEIGHT,
    Chart,
    add_bars,
    byte_axis,
    name_rows,
    new_figure,
    safe,
    wrapped,
)
from qbench.report.waterfall import WaterfallRow, why_not_a_quarter
from qbench.units import format_bytes
from qbench.words.phrases import category_name
from qbench.words.settings import short_model

MOST_BARS = 12
"""Bars that a reader can still compare; above it only one model is shown."""

Breakdown = Callable[[Result], Mapping[str, int]]


def breakdown_at_peak(results: Sequence[Result]) -> Chart | None:
    """Return stacked bars of memory by category at the peak, one for each precision; None without data."""
    title = "Where the memory is at the peak of a step"
    return _breakdown_chart("peak", title, results, lambda result: result.breakdown)


def breakdown_at_rest(results: Sequence[Result]) -> Chart | None:
    """Return stacked bars of what the model takes before the first step; None without data."""
    title = "What the model takes at rest, before the first step"
    return _breakdown_chart("rest", title, results, lambda result: result.latest.static_breakdown_bytes)


def _breakdown_chart(name: str, title: str, results: Sequence[Result], breakdown: Breakdown) -> Chart | None:
    group = _bars(results, breakdown)
    if not group:
        return None
    return Chart(
        name=name,
        title=title,
        caption=conditions(group, *_free(group)),
        figures=(_stacked(group, breakdown),),
        results=tuple(group),
    )


def _free(group: Group) -> tuple[str, ...]:
    models = {result.point.model for result in group}
    return ("precision", "model") if len(models) > 1 else ("precision",)


def _bars(results: Sequence[Result], breakdown: Breakdown) -> Group:
    """Return the results of the settings with most precisions, a single model where all would be too many."""
    known = plans_first([result for result in results if breakdown(result)])
    group = widest(alike(known, "precision", "model"), len)
    if len(group) > MOST_BARS:
        middle = sorted(alike(group, "precision"), key=_size)
        most = max(precisions(members) for members in middle)
        full = [members for members in middle if precisions(members) == most]
        group = full[len(full) // 2]
    return by_precision(sorted(group, key=lambda result: result.value("total_params") or 0))


def _size(group: Group) -> float:
    return group[0].value("total_params") or 0


def _stacked(group: Group, breakdown: Breakdown) -> go.Figure:
    axis = byte_axis(sum(breakdown(result).values()) for result in group)
    figure = new_figure(x_title=axis.unit, height=FRAME_HEIGHT + BAR_HEIGHT * len(group))
    models = list(dict.fromkeys(result.point.model for result in group))
    if len(models) > 1:
        group = [result for model in models for result in group if result.point.model == model]
    for category in BREAKDOWN:
        values = [breakdown(result).get(category, 0) for result in group]
        if any(values):
            add_bars(figure, values, axis, category_name(category), CATEGORY_COLOURS[category])
    labels = [_bar_label(result, sum(breakdown(result).values()), len(models) > 1) for result in group]
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(rangemode="tozero")
    name_rows(figure, labels)
    return figure


def _bar_label(result: Result, total: int, with_model: bool) -> str:
    name: str = result.point.precision
    if with_model:
        name = f"{wrapped(short_model(result.point.model))} {name}"
    return f"<b>{name}</b><br>{format_bytes(total)}"


def waterfall(results: Sequence[Result]) -> Chart | None:
    """Return the way from the 16-bit base to the quantized one and on to the peak; None without data."""
    plans = [result for result in results if why_not_a_quarter(result.records[-1])]
    group = widest(alike(plans, "precision"), precisions)
    if not group:
        return None
    # The smallest base is the one of which a quarter is expected.
    chosen = min(group, key=lambda result: result.value("static_bytes") or 0)
    rows, precision = why_not_a_quarter(chosen.records[-1]), chosen.point.precision
    notes = [f"{row.label[0].upper()}{row.label[1:]}: {row.note}." for row in rows if row.note]
    return Chart(
        name="waterfall",
        title=f"Why {precision} is not {'a half' if precision == 'int8' else 'a quarter'} of 16 bit",
        caption=" ".join([conditions([chosen]), *notes]),
        figures=(_waterfall_figure(rows),),
        results=(chosen,),
    )


def _waterfall_figure(rows: Sequence[WaterfallRow]) -> go.Figure:
    axis = byte_axis(row.bytes for row in rows if row.kind == "total")
    figure = new_figure(x_title=axis.unit, height=FRAME_HEIGHT + 38 * len(rows))
    figure.add_waterfall(
        orientation="h",
        y=list(range(len(rows))),
        x=[axis.scaled(row.bytes) for row in rows],
        measure=["absolute" if row.kind == "total" else "relative" for row in rows],
        totals={"marker": {"color": CATEGORY_COLOURS["weights"]}},
        increasing={"marker": {"color": CATEGORY_COLOURS["logits_loss"]}},
        decreasing={"marker": {"color": CATEGORY_COLOURS["adapters"]}},
        connector={"line": {"color": "#8A8A8A", "width": 1, "dash": "dot"}},
        customdata=[safe(row.note or row.label) for row in rows],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(rangemode="tozero")
    name_rows(figure, [_waterfall_label(row) for row in rows])
    return figure


def _waterfall_label(row: WaterfallRow) -> str:
    size = format_bytes(row.bytes)
    if row.kind == "total":
        return f"<b>{safe(row.label)}<br>{size}</b>"
    return f"{safe(row.label)}<br>{'+' if row.bytes > 0 else ''}{size}"
