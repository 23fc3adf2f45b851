"""The charts of a report, in the order in which a page shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qbench.comparison.results import Result
from qbench.report import fits, quality
from qbench.report.charts import frontier, memory, sweep
from qbench.report.charts.groups import by_device, group_name
from qbench.report.charts.style import Chart

BUILDERS: tuple[Callable[[Sequence[Result]], Chart | None], ...] = (
    fits.what_fits,
    fits.how_far,
    memory.breakdown_at_peak,
    memory.breakdown_at_rest,
    memory.waterfall,
    sweep.against_rank,
    sweep.against_seq_len,
    sweep.against_model_size,
    frontier.memory_against_speed,
    sweep.planned_against_measured,
    quality.error_by_layer,
    sweep.loss_by_step,
    sweep.timeline,
)


def charts(results: Sequence[Result]) -> list[Chart]:
    """Return every chart that the results have data for, device by device.

    Charts never mix devices or machines; with more than one device, titles name it.
    """
    devices = by_device(results)
    found = []
    for group in devices:
        device = group_name(group)
        for build in BUILDERS:
            chart = build(group)
            if chart is not None and len(devices) > 1:
                chart = replace(chart, name=f"{chart.name}-{device}", title=f"{chart.title} ({device})")
            if chart is not None:
                found.append(chart)
    return found
