"""What gloo alone allocates, on the CPU, where NCCL and a plan allocate nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from qbench.memory.history.ledger import Allocation, History
from qbench.scenario.schema import Point

_COPIES = ("aten.split.Tensor", "aten.slice.Tensor")
"""Operators that see copies of gloo's, within a reduce-scatter and an all-gather; views otherwise."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A history without some of its allocations' events."""

    allocations: list[Allocation]
    events: list[tuple[int, int]]
    marks: list[tuple[int, str]]


def without_gloo(history: History, point: Point) -> Kept:
    """Return a history without copies that gloo makes and what DDP's check of shapes takes first."""
    made = history.allocations
    left_out = {handle for handle, each in enumerate(made) if each.op in _COPIES and each.phase != "build"}
    has_replicas = point.distributed is not None and point.distributed.strategy == "ddp"
    prepared = [handle for handle, each in enumerate(made) if has_replicas and each.phase == "prepare"]
    # The first tensors of a broadcast are joined; what is there before is the check's.
    left_out |= set(itertools.takewhile(lambda handle: made[handle].op != "aten.cat.default", prepared))
    before = [0, *itertools.accumulate(handle not in left_out for handle, _ in history.events)]
    return Kept(
        allocations=made,
        events=[event for event in history.events if event[0] not in left_out],
        marks=[(before[event], name) for event, name in history.marks],
    )
