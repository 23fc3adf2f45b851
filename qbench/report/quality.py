"""Quality: errors of quantized weights by layer, the worst modules, and losses on one text."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence

from qbench.comparison.quality import ModuleError, module_errors, quality_of
from qbench.comparison.results import Result
from qbench.report.charts.groups import alike, by_precision, conditions, precisions, widest
from qbench.report.charts.style import PRECISION_COLOURS, Chart, new_figure
from qbench.report.table import Draft, Table
from qbench.report.tables import Numbers, add_settings, record_ranges, rounded
from qbench.words.settings import short_model

WORST_MODULES = 5
"""Modules that are named for each model and precision."""


def losses_table(results: Sequence[Result], numbers: Numbers | None = None) -> Table | None:
    """Return the losses on a text and the error of the weights for each point with real weights."""
    known = [result for result in by_precision(results) if quality_of(result)]
    qualities = [quality_of(result) for result in known]
    draft = Draft()
    add_settings(draft, known)
    draft.add("Precision", [result.point.precision for result in known])
    draft.add("Method", [{"qlora": "QLoRA", "lora": "LoRA"}.get(r.point.method, "full") for r in known])
    draft.add("Loss before", [quality.get("loss_before") for quality in qualities], "nats/token")
    draft.add("Loss after", [quality.get("loss_after") for quality in qualities], "nats/token")
    draft.add("Steps", [quality.get("steps") for quality in qualities])
    draft.add("Tokens of text", [quality.get("tokens") for quality in qualities], "count")
    draft.add("Error of weights", [_percent(quality.get("weight_error")) for quality in qualities], "%")
    draft.add("Not compared because", [quality.get("weights_error") for quality in qualities])
    draft.add("Records", [record_ranges([result], numbers or {}) for result in known])
    return draft.table(
        "The loss before training is that of the stored base; the loss after it is that of base and adapter. "
        "All are over the same text, without dropout, from the same seed.",
        "The error of weights is the norm of what quantization changed over the norm of the original.",
    )


def worst_table(results: Sequence[Result], numbers: Numbers | None = None) -> Table | None:
    """Return the modules that quantization changed most, for each model and precision."""
    rows = [
        (result, error)
        for result in by_precision(results)
        for error in heapq.nlargest(WORST_MODULES, module_errors(result), key=lambda error: error.error)
    ]
    draft = Draft()
    draft.add("Model", [short_model(result.point.model) for result, _ in rows])
    draft.add("Precision", [result.point.precision for result, _ in rows])
    draft.add("Module", [error.module for _, error in rows])
    draft.add("Error", [_percent(error.error) for _, error in rows], "%")
    draft.add("Records", [record_ranges([result], numbers or {}) for result, _ in rows])
    return draft.table()


def _percent(share: float | None) -> float | None:
    return None if share is None else rounded(100 * share)


def error_by_layer(results: Sequence[Result]) -> Chart | None:
    """Return the mean error of the quantized weights of each layer, a line for each precision."""
    known = [result for result in results if any(e.block is not None for e in module_errors(result))]
    group = by_precision(widest(alike(known, "precision"), precisions))
    if not group:
        return None
    figure = new_figure(x_title="Layer", y_title="Error of the weights (%)")
    for result in group:
        layers = _by_layer(module_errors(result))
        figure.add_scatter(
            x=list(layers),
            y=[100 * statistics.fmean(errors) for errors in layers.values()],
            mode="lines+markers",
            name=result.point.precision,
            line={"color": PRECISION_COLOURS[result.point.precision], "width": 2},
            marker={"size": 5},
            customdata=[
                f"{100 * min(errors):.2f} to {100 * max(errors):.2f} %" for errors in layers.values()
            ],
            hovertemplate="%{fullData.name}, layer %{x}: %{y:.2f} %, modules %{customdata}<extra></extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(tickformat="d", zeroline=False)
    return Chart(
        name="quality",
        title="What quantization changes, layer by layer",
        caption=f"{conditions(group, 'precision')} Means over the modules of a layer.",
        figures=(figure,),
        results=tuple(group),
    )


def _by_layer(errors: Sequence[ModuleError]) -> dict[int, list[float]]:
    layers: dict[int, list[float]] = {}
    for error in errors:
        if error.block is not None:
            layers.setdefault(error.block, []).append(error.error)
    return dict(sorted(layers.items()))
