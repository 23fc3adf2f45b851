"""Charts as SVG and PNG, drawn by kaleido, which the extra `static` brings, in a Chrome or Chromium."""

from __future__ import annotations

import importlib.util
import os
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qbench.errors import QbenchError, first_line
from qbench.report.charts.style import FONT, WRAP, Chart, safe

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 900
TITLE_CHARACTERS = 90
"""Of a line of a title, which at its size have some 9 pixels each at the most."""
SCALE = 2
"""Pixels of a PNG for each of the chart."""


def write_static(drawn: Sequence[Chart], folder: Path) -> list[Path]:
    """Write each figure of the charts as SVG and PNG into a folder that exists; return their paths.

    Raises QbenchError when kaleido or a browser is missing, or the folder cannot be written.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise QbenchError("--static draws with kaleido, which is not installed: pip install 'qbench[static]'")
    figures = {
        f"{_file_name(chart.name)}{f'-{number}' if number else ''}": _on_paper(chart, figure)
        for chart in drawn
        for number, figure in enumerate(chart.figures)
    }
    try:
        return _draw(figures, folder)
    except Exception as error:
        # What a browser that is missing or broken raises is kaleido's affair.
        raise QbenchError(
            f"--static: the charts could not be drawn ({first_line(error)}); kaleido needs Chrome or "
            "Chromium, and finds one that BROWSER_PATH names"
        ) from error


def _draw(figures: dict[str, Any], folder: Path) -> list[Path]:
    import plotly.io

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is not None:
        os.environ.setdefault("BROWSER_PATH", found)
    paths = [folder / f"{name}.{suffix}" for name in figures for suffix in ("svg", "png")]
    twice = [figure for figure in figures.values() for _ in ("svg", "png")]
    heights = [figure.layout.height for figure in twice]
    plotly.io.write_images(twice, [str(path) for path in paths], width=WIDTH, height=heights, scale=SCALE)
    return paths


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name)


def _on_paper(chart: Chart, figure: Any) -> Any:
    """Return a figure that stands alone: title and legend in it, dark on white."""
    import plotly.graph_objects as go

    alone = go.Figure(figure)
    lines = textwrap.wrap(chart.title, TITLE_CHARACTERS)
    above = 64 + 22 * (len(lines) - 1)
    legend = any(trace.showlegend is not False for trace in figure.data)
    alone.update_layout(
        title={
            "text": WRAP.join(map(safe, lines)),
            "font": {"size": 17},
            "x": 0,
            "xref": "paper",
            "y": 0.99,
            "yanchor": "top",
        },
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        font={"family": FONT, "size": 13, "color": "#1c2330"},
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "traceorder": "normal"},
        margin={"l": 8, "r": 24, "t": above + (20 if legend else 0), "b": 8},
        height=(figure.layout.height or 340) + above - 4,
    )
    alone.update_xaxes(gridcolor="#e6e9ee", linecolor="#596273", zerolinecolor="#596273")
    alone.update_yaxes(gridcolor="#e6e9ee", linecolor="#596273", zerolinecolor="#596273")
    return alone
