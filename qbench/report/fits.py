"""What fits where: plans checked against cards, as a table and as a map of model, precision and GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from qbench.comparison.results import Result
from qbench.records.fits import Fit
from qbench.records.metrics import METRICS
from qbench.report.charts.groups import Group, alike, by_precision, conditions, widest
from qbench.report.charts.style import FRAME_HEIGHT, Chart, name_rows, new_figure, safe, wrapped
from qbench.report.table import Draft, Table
from qbench.report.tables import Numbers, add_settings, record_ranges
from qbench.words.fit_verdict import reason_text, room_number, verdict_text
from qbench.words.settings import short_model

MOST_CARDS = 12
"""Cards that a map shows; the table has all."""

MOST_MODELS = 30
CELL_HEIGHT = 36
NARROW_LABEL = 13
"""Characters of a line beside a map, whose cells need the width on a phone."""

LITTLE = 0.1
"""Share of a card's memory below which little is left."""

# Pale enough that the page's ink is read on them, on white and on near-black.
SHADES = ("rgba(213,94,0,0.42)", "rgba(230,159,0,0.30)", "rgba(44,127,184,0.38)")
"""Does not fit, fits with little left, fits."""


def fits_table(results: Sequence[Result], numbers: Numbers | None = None) -> Table | None:
    """Return one row for each plan and GPU that it was checked against (detail.fits)."""
    asked = [(result, fit) for result in results for fit in result.fits]
    draft = Draft()
    add_settings(draft, [result for result, _ in asked])
    draft.add("Precision", [result.point.precision for result, _ in asked])
    fits = [fit for _, fit in asked]
    trained = [fit if fit.fits else Fit(gpu=fit.gpu, fits=False, verdict=fit.verdict) for fit in fits]
    draft.add("GPU", [fit.gpu for fit in fits])
    draft.add("Memory", [fit.memory_bytes for fit in fits], "bytes")
    draft.add("Verdict", [fit.verdict for fit in fits])
    draft.add("Why", [reason_text(fit) or None for fit in fits])
    draft.add("Left", [fit.headroom_bytes for fit in fits], "bytes")
    _add(draft, "peak_allocated_bytes", [fit.peak_allocated_bytes for fit in fits])
    _add(draft, "peak_reserved_bytes", [fit.peak_reserved_bytes for fit in fits])
    draft.add("USD an hour", [fit.usd_per_hour for fit in trained])
    draft.add("Price from", [fit.price_from for fit in trained])
    _add(draft, "step_time_s", [fit.step_time_s for fit in trained])
    _add(draft, "tokens_per_s", [fit.tokens_per_s for fit in trained])
    _add(draft, "cost_usd_per_mtok", [fit.cost_usd_per_mtok for fit in trained])
    draft.add("Records", [record_ranges([result], numbers or {}) for result, _ in asked])
    return draft.table()


def _add(draft: Draft, metric: str, cells: Sequence[float | None]) -> None:
    draft.add(METRICS[metric].title, cells, METRICS[metric].unit)


def what_fits(results: Sequence[Result]) -> Chart | None:
    """Return a map of what each card holds: by precision, and by model where there are several."""
    asked = [result for result in results if result.kind == "plan" and result.fits]
    group = by_precision(widest(alike(asked, "precision", "model"), _cells))
    if not group:
        return None
    models = list(dict.fromkeys(result.point.model for result in group))
    cards = _cards(group)
    if len(models) == 1:
        told = any(fit.headroom_bytes is not None for result in group for fit in result.fits)
        rows = [(card, card, models[0]) for card in cards]
        figures = [_map(group, rows, "GiB left" if told else "Precision")]
    else:
        named = [(short_model(model), model) for model in models[:MOST_MODELS]]
        figures = [
            _map(group, [(name, card, model) for name, model in named], f"GiB left on {card}")
            for card in cards
        ]
    drawn = [result for result in group if result.point.model in models[:MOST_MODELS]]
    free = ("precision", *(["model"] if len(models) > 1 else []))
    return Chart(
        name="fits",
        title="What fits where",
        caption=f"{conditions(drawn, *free)} A negative number is what the card lacks; "
        f"orange does not fit, yellow leaves less than {100 * LITTLE:.0f} %.",
        figures=tuple(figures),
        results=tuple(drawn),
    )


def _cells(group: Group) -> int:
    return sum(len(result.fits) for result in group)


def how_far(results: Sequence[Result]) -> Chart | None:
    """Return a map of the longest sequence that each card holds, by precision; None unless it varies."""
    asked = [result for result in results if result.kind == "plan" and result.fits]
    group = by_precision(widest(alike(asked, "precision", "seq_len"), _lengths))
    if _lengths(group) < 2:
        return None
    cards, columns = _cards(group), list(dict.fromkeys(result.point.precision for result in group))
    longest: dict[tuple[str, str], int] = {}
    for result in group:
        for fit in result.fits:
            cell = (fit.gpu, result.point.precision)
            held = result.point.train.seq_len if fit.fits else 0
            longest[cell] = max(longest.get(cell, 0), held)
    most = max(result.point.train.seq_len for result in group)
    cells = [[longest.get((card, column)) for column in columns] for card in cards]
    figure = _figure(cards, columns, "Longest sequence that fits, tokens")
    figure.add_heatmap(
        z=[
            [None if held is None else 0 if not held else 2 if held == most else 1 for held in row]
            for row in cells
        ],
        text=[["" if held is None else f"{held:,}" if held else "none" for held in row] for row in cells],
        hovertemplate="%{x} on %{y}: %{text}<extra></extra>",
        **_look(cards, columns),
    )
    return Chart(
        name="reach",
        title="How long a sequence each card holds",
        caption=f"{conditions(group, 'precision', 'seq_len')} The longest planned is {most:,} tokens; "
        "yellow stops before it, orange fits none of the planned lengths.",
        figures=(figure,),
        results=tuple(group),
    )


def _lengths(group: Group) -> int:
    return len({result.point.train.seq_len for result in group})


def _cards(group: Group) -> list[str]:
    """Return the cards that were named, smallest first, cut to MOST_CARDS."""
    sizes: dict[str, float] = {}
    for result in group:
        for fit in result.fits:
            sizes.setdefault(fit.gpu, fit.memory_bytes or 0)
    return sorted(sizes, key=lambda card: sizes[card])[:MOST_CARDS]


def _map(group: Group, rows: Sequence[tuple[str, str, str]], x_title: str) -> go.Figure:
    """Return one map; `rows` are (label, card, model), columns are precisions."""
    columns = list(dict.fromkeys(result.point.precision for result in group))
    held = {
        (result.point.model, result.point.precision, fit.gpu): fit for result in group for fit in result.fits
    }
    cells = [[held.get((model, column, card)) for column in columns] for _, card, model in rows]
    labels = [label for label, _, _ in rows]
    figure = _figure(labels, columns, x_title)
    figure.add_heatmap(
        z=[[_shade(fit) for fit in row] for row in cells],
        text=[[room_number(fit) for fit in row] for row in cells],
        customdata=[[_hover(fit) for fit in row] for row in cells],
        hovertemplate="%{x}: %{customdata}<extra></extra>",
        **_look(labels, columns),
    )
    return figure


def _figure(labels: Sequence[str], columns: Sequence[str], x_title: str) -> go.Figure:
    figure = new_figure(x_title=safe(x_title), height=FRAME_HEIGHT + CELL_HEIGHT * len(labels))
    figure.update_xaxes(side="top", showgrid=False, type="category", tickangle=0)
    name_rows(figure, [wrapped(label, NARROW_LABEL) for label in labels])
    return figure


def _look(labels: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    return {
        "x": list(columns),
        "y": list(range(len(labels))),
        "texttemplate": "%{text}",
        "zmin": -0.5,
        "zmax": 2.5,
        "colorscale": [(edge / 3, SHADES[shade]) for shade in range(3) for edge in (shade, shade + 1)],
        "showscale": False,
        "showlegend": False,
        "xgap": 3,
        "ygap": 3,
    }


def _shade(fit: Fit | None) -> int | None:
    if fit is None:
        return None
    room, memory = fit.headroom_bytes, fit.memory_bytes
    if not fit.fits:
        return 0
    return 1 if room is not None and memory and room < LITTLE * memory else 2


def _hover(fit: Fit | None) -> str:
    return "not planned" if fit is None else safe(verdict_text(fit))
