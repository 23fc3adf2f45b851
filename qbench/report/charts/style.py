"""What all charts share: colours, the empty figure, and the `Chart` that a page shows."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from qbench.comparison.results import Result
from qbench.units import GIB, KIB, MIB, format_value

# Paul Tol's bright scheme, which colour-blind readers can tell apart, and two greys of their own lightness;
# all are of middle lightness, so that they stand out from white and from near-black.
# Source: https://sronpersonalpages.nl/~pault/ (figure 1).
CATEGORY_COLOURS = {
    "weights": "#4477AA",
    "quant_state": "#66CCEE",
    "adapters": "#228833",
    "gradients": "#CCBB44",
    "optimizer": "#EE6677",
    "activations": "#AA3377",
    "logits_loss": "#EE9955",
    "temporaries": "#A0A0A0",
    "workspace": "#707070",
    "gathered": "#117733",
    "communication": "#999933",
    "buckets": "#882255",
}

# Okabe and Ito's set, one colour for each precision; double quantization is the darker of a like pair.
# Source: https://jfly.uni-koeln.de/color/
PRECISION_COLOURS = {
    "fp32": "#8A8A8A",
    "bf16": "#2C7FB8",
    "fp16": "#56B4E9",
    "nf4": "#E69F00",
    "nf4-dq": "#D55E00",
    "fp4": "#CC79A7",
    "fp4-dq": "#9B5FA8",
    "int8": "#009E73",
}

NEUTRAL = "#8A8A8A"
"""Lines and text of a figure; a page replaces it by its own ink."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LABEL_WIDTH = 20
"""Characters of a label's line: on a phone the bars need the rest."""

WRAP = "<br />"
"""Breaks a name, where `<br>` stands between two texts."""

BAR_HEIGHT = 50
FRAME_HEIGHT = 76


@dataclass(frozen=True, slots=True)
class LegendItem:
    """One name in the legend of a chart."""

    name: str
    colour: str
    shape: str
    """box, dot, solid or dotted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One section of charts; figures of one section stand side by side where there is room."""

    name: str
    """Short name, unique on a page, for anchors."""
    title: str
    caption: str
    """What is shown, for which settings, and what follows from it."""
    figures: tuple[go.Figure, ...]
    results: tuple[Result, ...]
    """What is drawn."""

    @property
    def legend(self) -> list[LegendItem]:
        """Names of the figures' traces, once each. Figures draw no legend: plotly's takes half a phone."""
        traces = [trace for figure in self.figures for trace in figure.data if trace.showlegend is not False]
        return list({trace.name: _legend_item(trace) for trace in traces}.values())


def _legend_item(trace: Any) -> LegendItem:
    if trace.type == "bar":
        return LegendItem(trace.name, trace.marker.color, "box")
    if trace.mode == "markers":
        return LegendItem(trace.name, trace.marker.color, "dot")
    return LegendItem(trace.name, trace.line.color, "dotted" if trace.line.dash == "dot" else "solid")


def safe(text: object) -> str:
    """Return text in which plotly finds no markup of its own."""
    return html.escape(str(text), quote=False)


def wrapped(name: str, width: int = LABEL_WIDTH) -> str:
    """Return a name as a label of a chart: two lines at most, without the middle of a longer one."""
    if len(name) > 2 * LABEL_WIDTH:
        name = f"{name[: LABEL_WIDTH - 1]}\u2026{name[-LABEL_WIDTH:]}"
    if len(name) <= width:
        return safe(name)
    places = [place + 1 for place, character in enumerate(name[:-1]) if character in "-_. \u2026"]
    middle = min(places or [width], key=lambda place: abs(place - len(name) / 2))
    return f"{safe(name[:middle])}{WRAP}{safe(name[middle:])}"


@dataclass(frozen=True, slots=True)
class ValueAxis:
    """The unit of an axis, and how much of a value one of it is."""

    unit: str
    size: float

    def scaled(self, value: float | None) -> float | None:
        """Return a value in the unit of the axis."""
        return None if value is None else value / self.size


def byte_axis(values: Iterable[float | None]) -> ValueAxis:
    """Return the largest unit of which the largest value has at least one: GiB, else MiB, else KiB."""
    largest = max((abs(value) for value in values if value is not None), default=0)
    units = (("GiB", GIB), ("MiB", MIB))
    return next((ValueAxis(unit, size) for unit, size in units if largest >= size), ValueAxis("KiB", KIB))


def add_bars(
    figure: go.Figure,
    values: Sequence[float | None],
    axis: ValueAxis,
    name: str,
    colour: str,
    unit: str = "bytes",
) -> None:
    """Add a trace of horizontal bars, one a row, which say their value in its unit."""
    figure.add_bar(
        orientation="h",
        y=list(range(len(values))),
        x=[axis.scaled(value) for value in values],
        name=name,
        marker={"color": colour},
        customdata=[format_value(value, unit) for value in values],
        hovertemplate="%{fullData.name}: %{customdata}<extra></extra>",
    )


def name_rows(figure: go.Figure, labels: Sequence[str]) -> None:
    """Write a label beside each row of a figure, the first one on top."""
    figure.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=list(labels),
        autorange="reversed",
        showgrid=False,
        zeroline=False,
    )


def new_figure(*, x_title: str, y_title: str = "", height: int = 340) -> go.Figure:
    """Return an empty figure: transparent, without legend, and without drag, which would trap a finger."""
    axis: dict[str, Any] = {
        "automargin": True,
        "gridcolor": NEUTRAL,
        "zerolinecolor": NEUTRAL,
        "linecolor": NEUTRAL,
        "ticks": "",
    }
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 8, "r": 16, "t": 12, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 13, "color": NEUTRAL},
            "hoverlabel": {"bgcolor": "#1f2430", "bordercolor": "#1f2430", "font": {"color": "#ffffff"}},
            "dragmode": False,
            "showlegend": False,
            "xaxis": axis | {"title": {"text": x_title, "standoff": 8, "font": {"size": 13}}},
            "yaxis": axis | {"title": {"text": y_title, "standoff": 8, "font": {"size": 13}}},
        }
    )
