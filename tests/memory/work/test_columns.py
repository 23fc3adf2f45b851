"""Work in columns is the work it was made of; equal rows are joined at one size, not at another."""

from __future__ import annotations

import numpy as np
import pytest

from qbench.memory.work.columns import columns_of
from qbench.memory.work.log import Work, WorkTable
from qbench.memory.work.op_costs import OpCost

# Of m = 8 rows, 3 x 5 products: 2 x 8 x 3 x 5 operations; bf16, so 2 x (8 x 3 + 3 x 5) bytes in, 2 x 40 out.
PRODUCT = OpCost("mm", "matmul", "bf16", 240, 78, 80, (1, 8, 5, 3), "nt")
# A causal kernel does half of two products, two operations each: 2 x 2 x 16 x 16 x 4.
ATTENTION = OpCost("_flash", "attention", "bf16", 4096, 512, 256, (2, 16, 16, 4))
# torch counts convolutions, whose shape is not told.
CONVOLUTION = OpCost("convolution", "elementwise", "fp32", 7, 40, 20)
VIEW = OpCost("view", "none", "other")
WORK: WorkTable = [
    (Work(PRODUCT, "forward", False, False), 3.0),
    (Work(VIEW, "forward", False, False), 3.0),
    (Work(ATTENTION, "backward", True, False), 1.0),
    (Work(PRODUCT, "loss", False, True), 1.0),
    (Work(CONVOLUTION, "forward", False, False), 2.5),
    (Work(VIEW, "forward", False, False), 1.0),
]


def test_what_goes_in_comes_out_with_equal_work_joined() -> None:
    # The views are one row, at the place of the first; the product in the loss is another than in forward.
    assert columns_of(WORK).table() == [WORK[0], (WORK[1][0], 4.0), *WORK[2:5]]


def test_operations_are_told_for_each_of_a_shapes_product() -> None:
    sizes = columns_of(WORK).sizes
    assert sizes[0].tolist() == [78, 80, 2, 1, 8, 5, 3]
    # 4096 operations of 2 x 16 x 16 x 4.
    assert sizes[2].tolist() == [512, 256, 2, 2, 16, 16, 4]
    assert sizes[4].tolist() == [40, 20, 7, 0, 0, 0, 0]


def test_work_of_other_sizes_is_joined_by_those() -> None:
    adds = [
        (Work(OpCost("add", "elementwise", "fp32", 0, size, 4), "forward", False, False), 1.0)
        for size in (8, 16)
    ]
    columns = columns_of(adds)
    assert len(columns.table()) == 2
    alike = columns.resized(np.array([8, 4, 0, 0, 0, 0, 0] * 2))
    assert alike.table() == [(adds[0][0], 2.0)]
    assert alike.same_as(columns)


@pytest.mark.parametrize("place", range(len(WORK)))
def test_other_operators_or_counts_are_other_work(place: int) -> None:
    columns = columns_of(WORK)
    entry, times = WORK[place]
    more: WorkTable = [*WORK[:place], (entry, times + 1), *WORK[place + 1 :]]
    other: WorkTable = [
        *WORK[:place],
        (Work(entry.cost, "optimizer", False, False), times),
        *WORK[place + 1 :],
    ]
    assert columns.same_as(columns_of(WORK))
    assert not columns.same_as(columns_of(more))
    assert not columns.same_as(columns_of(other))


def test_no_work_is_an_empty_table() -> None:
    assert columns_of([]).table() == []
