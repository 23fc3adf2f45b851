"""The time that the work of a dry run would take on its card, by the rates that plans use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qbench.catalog.gpus import GpuSpec
from qbench.records.parts import TimeParts


def planned_time(rows: Sequence[Mapping[str, Any]], gpu: GpuSpec) -> tuple[float, TimeParts] | None:
    """Return the seconds of the work that an agent noted, and where they go.

    None where nothing was noted, or a kernel has no known rate on that card.
    """
    if not rows:
        return None
    # They import torch, which a run that noted no work does not need.
    from qbench.memory.work.log import Work
    from qbench.memory.work.op_costs import OpCost
    from qbench.planner.speed_datasheet import DatasheetRates
    from qbench.planner.step_time import step_time

    work = []
    for row in rows:
        cost = OpCost(**{**row["cost"], "shape": tuple(row["cost"]["shape"])})
        entry = Work(cost, row["phase"], is_recomputed=False, in_loss=False)
        work.append((entry, float(row["times"])))
    timed = step_time(work, DatasheetRates(gpu))
    if timed is None:
        return None
    parts = timed.to_values()
    parts["mfu"] = None  # What checkpointing computes again is not told apart.
    ends = [step_time(work, DatasheetRates(gpu, case)) for case in ("fastest", "slowest")]
    parts["range_s"] = [end.seconds for end in ends if end is not None]
    return timed.seconds, parts
