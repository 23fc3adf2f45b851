"""The chart that a report has no need of: settings side by side, each against its card's line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qbench.comparison.results import gather
from qbench.records.metrics import BREAKDOWN, OF_SEVERAL_GPUS
from qbench.records.record import Record
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
)
from qbench.units import format_bytes
from qbench.words.phrases import category_name

CARD_COLOUR = "#CC3311"
"""Red of Paul Tol's vibrant scheme, which no category has."""

OVERHEAD_COLOURS = {"reserved, not used": "#C8C8C8", "CUDA context": "#505050"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One setting of the chart."""

    name: str
    record: Record
    card_bytes: int
    """Memory of the card that it is checked against."""


def memory_chart(bars: Sequence[Bar]) -> Chart:
    """Return stacked bars of what each setting takes on the device, with the line of its card."""
    totals = [_device_bytes(bar) for bar in bars]
    axis = byte_axis([*totals, *(bar.card_bytes for bar in bars)])
    figure = new_figure(
        x_title=f"On the device ({axis.unit})", height=FRAME_HEIGHT + 16 + BAR_HEIGHT * len(bars)
    )
    parts = [_parts(bar.record) for bar in bars]
    for name, colour in _colours().items():
        values = [part.get(name, 0) for part in parts]
        if any(values):
            add_bars(figure, values, axis, name, colour)
    _add_cards(figure, bars, axis.size)
    labels = [
        f"<b>{safe(bar.name)}</b><br>{format_bytes(total)}" for bar, total in zip(bars, totals, strict=True)
    ]
    figure.update_layout(barmode="stack", bargap=0.35)
    longest = max(*totals, *(bar.card_bytes for bar in bars))
    # Some room, so that the line of the largest card is not cut in half.
    figure.update_xaxes(range=[0, 1.03 * longest / axis.size])
    name_rows(figure, labels)
    figure.update_yaxes(autorange=None, range=[len(bars) - 0.5, -0.5])
    return Chart(
        name="memory",
        title="Memory at the peak of a step, against the card",
        caption="What nvidia-smi would show at the peak. The red line is the memory of the card.",
        figures=(figure,),
        results=tuple(gather(bar.record for bar in bars)),
    )


def _device_bytes(bar: Bar) -> int:
    return sum(_parts(bar.record).values())


def _parts(record: Record) -> dict[str, int]:
    """Return what the device holds by name: the breakdown at the peak, and what CUDA has beside it."""
    allocated, reserved = record.peak_allocated_bytes or 0, record.peak_reserved_bytes or 0
    breakdown = record.breakdown_bytes
    names = [name for name in BREAKDOWN if name in breakdown or name not in OF_SEVERAL_GPUS]
    parts = {category_name(name): breakdown.get(name, 0) for name in names}
    overhead = (max(reserved - allocated, 0), (record.device_bytes or 0) - reserved)
    return parts | dict(zip(OVERHEAD_COLOURS, overhead, strict=True))


def _colours() -> dict[str, str]:
    return {category_name(name): CATEGORY_COLOURS[name] for name in BREAKDOWN} | OVERHEAD_COLOURS


def _add_cards(figure: go.Figure, bars: Sequence[Bar], size: float) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    for row, bar in enumerate(bars):
        x += [bar.card_bytes / size, bar.card_bytes / size, None]
        y += [row - 0.48, row + 0.48, None]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        name="memory of the card",
        line={"color": CARD_COLOUR, "width": 3},
        hovertemplate="card: %{x:.2f}<extra></extra>",
    )
