"""The work of a step in columns: which operators ran, apart from how large what they worked on was.

The steps of points that differ in sizes alone run the same operators, so only the numbers differ, as the
bytes of allocations do (`outline`). A row stands for each operator that ran: two that cost the same at one
size may differ at another, so rows are joined for one size at a time (`table`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from qbench.memory.history.events import Ints, numbered
from qbench.memory.work.log import Work, WorkTable
from qbench.memory.work.op_costs import OpCost, OpKind

Ran = tuple[str, OpKind, str, str, bool, str, bool, bool]
"""Operator, kind, dtype, layout, whether it has a shape, phase, whether recomputed, whether in the loss."""

NUM_SIZES = 7
"""Bytes read and written, operations, and the four sizes of a shape.

Operations of an operator with a shape are given per unit of its product: their number is a product of
sizes, so it would exceed 64 bits long before the sizes do when multiples of it are summed.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class WorkColumns:
    """The operators of a step in order, how often each counts, and its sizes."""

    ran: list[Ran]
    times: list[float]
    sizes: Ints
    """One row of `NUM_SIZES` for each operator."""

    def same_as(self, other: WorkColumns) -> bool:
        """Say whether the same operators ran as often, sizes left aside."""
        return self.times == other.times and self.ran == other.ran

    def resized(self, sizes: Ints) -> WorkColumns:
        """Return the same operators with other sizes, in one dimension or two."""
        return replace(self, sizes=sizes.reshape(-1, NUM_SIZES))

    def table(self) -> WorkTable:
        """Return the work and how often each is done; equal work is one row, at its first place."""
        names, numbers = numbered(self.ran)
        counted: dict[tuple[int, ...], float] = defaultdict(float)
        rows = np.column_stack([numbers, self.sizes]).tolist()
        for row, times in zip(rows, self.times, strict=True):
            counted[tuple(row)] += times
        return [(_work(names[number], sizes), times) for (number, *sizes), times in counted.items()]


def columns_of(work: WorkTable) -> WorkColumns:
    """Return the columns of a step's work, one row for each operator that ran."""
    sizes = [_sizes(entry.cost) for entry, _ in work]
    return WorkColumns(
        ran=[_ran(entry) for entry, _ in work],
        times=[times for _, times in work],
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, NUM_SIZES),
    )


def _ran(entry: Work) -> Ran:
    cost = entry.cost
    has_shape = bool(cost.shape)
    return (
        cost.op,
        cost.kind,
        cost.dtype,
        cost.layout,
        has_shape,
        entry.phase,
        entry.is_recomputed,
        entry.in_loss,
    )


def _sizes(cost: OpCost) -> tuple[int, ...]:
    if not cost.shape:
        return (cost.read_bytes, cost.written_bytes, cost.flops, 0, 0, 0, 0)
    product = prod(cost.shape)
    each, rest = divmod(cost.flops, product) if product else (0, 0)
    assert not rest, f"{cost} does no whole number of operations for its shape"
    return (cost.read_bytes, cost.written_bytes, each, *cost.shape)


def _work(ran: Ran, sizes: list[int]) -> Work:
    op, kind, dtype, layout, has_shape, phase, is_recomputed, in_loss = ran
    read_bytes, written_bytes, flops, *shape = sizes
    if has_shape:
        flops *= prod(shape)
    cost = OpCost(
        op, kind, dtype, flops, read_bytes, written_bytes, tuple(shape) if has_shape else (), layout
    )
    return Work(cost, phase, is_recomputed, in_loss)
