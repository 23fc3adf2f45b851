"""The charts of a report, in the order in which a page shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qbench.compare.results import Result
from qbench.report import bars, curves, fits, frontier, quality
from qbench.report.selection import by_device
from qbench.report.style import Chart

BUILDERS: tuple[Callable[[Sequence[Result]], Chart | None], ...] = (
    fits.what_fits,
    fits.how_far,
    bars.breakdown_at_peak,
    bars.breakdown_at_rest,
    bars.waterfall,
    curves.against_rank,
    curves.against_seq_len,
    curves.against_model_size,
    frontier.memory_against_speed,
    curves.planned_against_measured,
    quality.error_by_layer,
    curves.loss_by_step,
    curves.timeline,
)


def charts(results: Sequence[Result]) -> list[Chart]:
    """Return every chart that the results have data for, device by device.

    Charts never mix devices or machines; with more than one device, titles name it.
    """
    devices = by_device(results)
    found = []
    for group in devices:
        device = group[0].device or "unknown device"
        for build in BUILDERS:
            chart = build(group)
            if chart is not None and len(devices) > 1:
                chart = replace(chart, name=f"{chart.name}-{device}", title=f"{chart.title} ({device})")
            if chart is not None:
                found.append(chart)
    return found
