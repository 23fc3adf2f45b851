"""Charts over a setting, over steps and over operators, and of plan against measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import plotly.graph_objects as go

from qbench.comparison.results import Prediction, Result, predictions, varying_settings
from qbench.records.metrics import METRICS
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
    FRAME_HEIGHT,
    NEUTRAL,
    PRECISION_COLOURS,
    Chart,
    ValueAxis,
    add_bars,
    byte_axis,
    name_rows,
    new_figure,
    safe,
    wrapped,
)
from qbench.units import format_value, plain_text
from qbench.words.basis import kind_text, measured_text
from qbench.words.headline import accuracy_sentence
from qbench.words.settings import short_model

FEW = 6  # Points up to which plan and measurement are shown as bars instead of dots.

FEW_LINES = 3  # Lines through one step that can be followed in one figure.

MOST_DOTS = 1000
MOST_SAMPLES = 1500
WIDE_RANGE = 50
"""Ratio of largest to smallest from which an axis is logarithmic."""

_Line = tuple[Result, list[Sequence[int]]]
"""A result and its samples of operators run and bytes alive."""

PEAK, SPEED = "peak_allocated_bytes", "tokens_per_s"


def against_rank(results: Sequence[Result]) -> Chart | None:
    """Return memory and throughput against the rank of the adapter; None unless the rank varies."""
    return _against(results, "r", "Rank r of the adapter", "rank", "against rank", _setting("r"))


def against_seq_len(results: Sequence[Result]) -> Chart | None:
    """Return memory and throughput against the sequence length; None unless it varies."""
    title = "against sequence length"
    return _against(results, "seq_len", "Tokens in a sequence", "seq", title, _setting("seq_len"))


def against_model_size(results: Sequence[Result]) -> Chart | None:
    """Return memory and throughput against the parameters of the model; None unless the model varies."""
    title = "against model size"
    return _against(
        results, "model", "Parameters of the model", "size", title, lambda r: r.value("total_params")
    )


def _setting(name: str) -> Callable[[Result], float | None]:
    return lambda result: result.settings.get(name)


def _against(
    results: Sequence[Result],
    factor: str,
    x_title: str,
    name: str,
    title: str,
    x_value: Callable[[Result], float | None],
) -> Chart | None:
    known = [result for result in results if x_value(result) is not None and result.completed]
    group = widest(alike(known, "precision", factor), lambda members: len({x_value(m) for m in members}))
    if len({x_value(result) for result in group}) < 2:
        return None
    figures = [_lines(group, metric, x_value, x_title) for metric in (PEAK, SPEED)]
    drawn = tuple(figure for figure in figures if figure.data)
    caption = conditions(group, "precision", factor)
    what = "Memory and throughput" if len(drawn) == 2 else "Memory" if figures[0].data else "Throughput"
    if not drawn:
        return None
    return Chart(name=name, title=f"{what} {title}", caption=caption, figures=drawn, results=tuple(group))


def _lines(group: Group, metric: str, x_value: Callable[[Result], float | None], x_title: str) -> go.Figure:
    axis = _axis(metric, (result.value(metric) for result in group))
    figure = new_figure(x_title=x_title, y_title=_axis_title(metric, axis))
    both = len({result.kind for result in group}) == 2
    for members in _lines_of(group):
        drawn = sorted((r for r in members if r.value(metric) is not None), key=lambda r: x_value(r) or 0)
        if not drawn:
            continue
        first = drawn[0]
        values = [first_known(result.value(metric)) for result in drawn]
        figure.add_scatter(
            x=[x_value(result) for result in drawn],
            y=[axis.scaled(value) for value in values],
            mode="lines+markers",
            name=f"{first.point.precision}{f', {kind_text(first.kind, first.device)}' if both else ''}",
            line={"color": PRECISION_COLOURS[first.point.precision], "dash": _dash(first, both), "width": 2},
            marker={
                "size": 7,
                "symbol": "circle" if first.kind == "measurement" or not both else "circle-open",
            },
            customdata=[
                f"{safe(short_model(result.point.model))}: {format_value(value, METRICS[metric].unit)}"
                for result, value in zip(drawn, values, strict=True)
            ],
            hovertemplate="%{fullData.name}, %{customdata}<extra></extra>",
        )
    _scale(figure, [x_value(result) for result in group])
    return figure


def _axis(metric: str, values: Iterable[float | None]) -> ValueAxis:
    return byte_axis(values) if metric == PEAK else ValueAxis(METRICS[metric].unit, 1)


def _axis_title(metric: str, axis: ValueAxis) -> str:
    return f"{METRICS[metric].title} ({axis.unit})"


def first_known(value: float | None) -> float:
    """Return a value that the caller has checked."""
    assert value is not None
    return value


def _lines_of(group: Group) -> list[Group]:
    lines: dict[tuple[str, str], Group] = {}
    for result in by_precision(group):
        lines.setdefault((result.point.precision, result.kind), []).append(result)
    return list(lines.values())


def _dash(result: Result, both: bool) -> str:
    return "dot" if both and result.kind == "plan" else "solid"


def _scale(figure: go.Figure, x_values: Sequence[float | None]) -> None:
    """Spread the axes: logarithmic over a wide range, and zero-based otherwise."""
    x = sorted({value for value in x_values if value})
    if x and x[-1] / x[0] >= 8:
        figure.update_xaxes(type="log", exponentformat="B")
    if len(x) <= FEW + 2 and x[-1] < 1e6:
        figure.update_xaxes(tickvals=x, ticktext=[f"{value:,.0f}" for value in x])
    y = [value for trace in figure.data for value in trace.y if value]
    if y and max(y) / min(y) >= WIDE_RANGE:
        figure.update_yaxes(
            type="log", dtick="D2", title_text=f"{figure.layout.yaxis.title.text}, logarithmic"
        )
    else:
        figure.update_yaxes(rangemode="tozero")


def planned_against_measured(results: Sequence[Result]) -> Chart | None:
    """Return planned over measured peaks, and throughput where both are known; None without such points."""
    met = predictions(results)
    figures = [_meeting(met, metric) for metric in (PEAK, SPEED)]
    drawn = tuple(figure for figure in figures if figure is not None)
    if not drawn:
        return None
    capped = f" The {MOST_DOTS:,} points with the largest error are drawn." if len(met) > MOST_DOTS else ""
    caption = f"{accuracy_sentence(results) or ''}{capped}".strip()
    other = measured_text(prediction.measured for prediction in met).removeprefix("on ")
    sides = tuple(side for prediction in met for side in (prediction.plan, prediction.measured))
    return Chart(
        name="accuracy", title=f"Planned against {other}", caption=caption, figures=drawn, results=sides
    )


def _meeting(met: Sequence[Prediction], metric: str) -> go.Figure | None:
    errors = {prediction.measured: prediction.error_percent(metric) for prediction in met}
    known = [prediction for prediction in met if errors[prediction.measured] is not None]
    if not known:
        return None
    if len(known) <= FEW:
        return _paired_bars(known, metric)
    known.sort(key=lambda prediction: -abs(errors[prediction.measured] or 0))
    return _dots(known[:MOST_DOTS], metric)


def _label(result: Result, names: Sequence[str]) -> str:
    parts = [result.point.precision, *(f"{name}={plain_text(result.settings.get(name))}" for name in names)]
    return safe(", ".join(parts))


def _sides(met: Sequence[Prediction], metric: str) -> list[float | None]:
    return [result.value(metric) for prediction in met for result in (prediction.measured, prediction.plan)]


def _paired_bars(met: Sequence[Prediction], metric: str) -> go.Figure:
    axis = _axis(metric, _sides(met, metric))
    figure = new_figure(x_title=_axis_title(metric, axis), height=FRAME_HEIGHT + BAR_HEIGHT * len(met))
    points = [prediction.measured.point for prediction in met]
    names = varying_settings(prediction.measured for prediction in met)
    models = len({point.model for point in points}) > 1
    labels = [
        (f"{wrapped(short_model(p.measured.point.model))}<br>" if models else "") + _label(p.measured, names)
        for p in met
    ]
    sides = (
        (measured_text(p.measured for p in met), "#4477AA", [p.measured for p in met]),
        ("planned", "#66CCEE", [p.plan for p in met]),
    )
    for name, colour, side in sides:
        add_bars(figure, [result.value(metric) for result in side], axis, name, colour, METRICS[metric].unit)
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_xaxes(rangemode="tozero")
    name_rows(figure, labels)
    return figure


def _dots(met: Sequence[Prediction], metric: str) -> go.Figure:
    axis = _axis(metric, _sides(met, metric))
    real = measured_text(p.measured for p in met).capitalize()
    figure = new_figure(x_title=f"{real} ({axis.unit})", y_title=f"Planned ({axis.unit})", height=400)
    values = [axis.scaled(value) or 0 for value in _sides(met, metric)]
    ends = [min(values), max(values)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", name="equal", line={"color": NEUTRAL, "dash": "dot"}, hoverinfo="skip"
    )
    for precision in dict.fromkeys(
        result.point.precision for result in by_precision(p.measured for p in met)
    ):
        chosen = [p for p in met if p.measured.point.precision == precision]
        figure.add_scatter(
            x=[axis.scaled(p.measured.value(metric)) for p in chosen],
            y=[axis.scaled(p.plan.value(metric)) for p in chosen],
            mode="markers",
            name=precision,
            marker={"color": PRECISION_COLOURS[precision], "size": 8, "opacity": 0.8},
            customdata=[f"{safe(p.measured.point.label)}: {p.error_percent(metric):+.2g} %" for p in chosen],
            hovertemplate="%{customdata}<extra></extra>",
        )
    if ends[0] > 0 and ends[1] / ends[0] >= WIDE_RANGE:
        for update, axis_layout in (
            (figure.update_xaxes, figure.layout.xaxis),
            (figure.update_yaxes, figure.layout.yaxis),
        ):
            update(type="log", dtick="D2", title_text=f"{axis_layout.title.text}, logarithmic")
    elif metric == PEAK:
        figure.update_xaxes(rangemode="tozero")
        figure.update_yaxes(rangemode="tozero")
    return figure


def loss_by_step(results: Sequence[Result]) -> Chart | None:
    """Return the loss of each step, one line for each precision; None where no loss was recorded."""
    known = [result for result in results if result.completed and _losses(result)]
    group = widest(alike(known, "precision"), precisions)
    if not group:
        return None
    figure = new_figure(x_title="Step", y_title="Loss (nats per token)")
    for result in by_precision(group):
        losses = _losses(result)
        _add_line(figure, result, list(range(1, len(losses) + 1)), losses)
    return Chart(
        name="loss",
        title="Loss by step",
        caption=conditions(group, "precision"),
        figures=(figure,),
        results=tuple(group),
    )


def _losses(result: Result) -> list[float | None]:
    losses = result.completed[0].raw("loss")
    return losses if len(losses) > 1 else []


def _add_line(figure: go.Figure, result: Result, x: Sequence[float], y: Sequence[float | None]) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        name=result.point.precision,
        line={"color": PRECISION_COLOURS[result.point.precision], "width": 2},
        hovertemplate="%{fullData.name}, %{x:,}: %{y:.3f}<extra></extra>",
    )


def timeline(results: Sequence[Result]) -> Chart | None:
    """Return live bytes over the operators of one step, one line for each precision; None without data."""
    known = plans_first([result for result in results if result.latest.timeline])
    group = widest(alike(known, "precision"), precisions)
    if not group:
        return None
    lines = [(result, _thinned(result.latest.timeline)) for result in by_precision(group)]
    # Of many lines none can be followed, so each has a figure of its own, all of one scale.
    apart = [[line] for line in lines] if len(lines) > FEW_LINES else [lines]
    figures = _timelines(apart, byte_axis(sample[1] for _, samples in lines for sample in samples))
    caption = f"{conditions(group, 'precision')} The highest point of a line is its peak."
    return Chart(
        name="timeline",
        title="Memory through one step",
        caption=caption,
        figures=tuple(figures),
        results=tuple(group),
    )


def _timelines(apart: Sequence[Sequence[_Line]], axis: ValueAxis) -> Iterator[go.Figure]:
    samples = [sample for lines in apart for _, samples in lines for sample in samples]
    last, highest = max(sample[0] for sample in samples), max(sample[1] for sample in samples)
    for lines in apart:
        names = f"{lines[0][0].point.precision}: " if len(apart) > 1 else ""
        figure = new_figure(
            x_title=f"{names}operators run so far" if names else "Operators run so far",
            y_title=f"Live memory ({axis.unit})",
            height=240 if len(apart) > 1 else 340,
        )
        for result, samples in lines:
            x, y = [sample[0] for sample in samples], [axis.scaled(sample[1]) for sample in samples]
            _add_line(figure, result, x, y)
        if len(apart) > 1:
            figure.update_xaxes(range=[0, last])
            figure.update_yaxes(range=[0, 1.05 * highest / axis.size])
        figure.update_yaxes(rangemode="tozero")
        yield figure


def _thinned(samples: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return at most MOST_SAMPLES samples, the highest of each stretch, so that the peak stays."""
    width = -(-len(samples) // MOST_SAMPLES)
    return [max(samples[i : i + width], key=lambda sample: sample[1]) for i in range(0, len(samples), width)]
