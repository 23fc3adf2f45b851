"""Planning that ends its process, as one that takes all memory is ended."""

from __future__ import annotations

import os
import signal

from qbench.measure.task import Measurement
from qbench.records.record import Record
from qbench.runs.plans import PlanFor, plan_record
from qbench.scenario.schema import Point


def dies_of_rank_3(settings: PlanFor, batch: tuple[Point, ...]) -> list[Record]:
    """Return a plan of each point, unless one has this rank."""
    if any(point.lora is not None and point.lora.r == 3 for point in batch):
        os.kill(os.getpid(), signal.SIGKILL)
    return [plan_record(point, settings, Measurement(outcome="ok", metrics={"flops": 1})) for point in batch]
