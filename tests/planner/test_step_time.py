"""Step time from work and rates, by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qbench.memory.work.log import Work, WorkTable
from qbench.memory.work.op_costs import OpCost, OpKind
from qbench.planner.step_time import PARTS, KernelSeconds, step_time


@dataclass
class Rates:
    """A device of 100 operations and 10 bytes a second, whose host takes a second for each operator."""

    overlaps: bool = True
    source: str = "made up"
    known: bool = True

    def kernel_s(self, cost: OpCost) -> KernelSeconds | None:
        if not self.known:
            return None
        arithmetic, movement = cost.flops / 100, cost.num_bytes / 10
        return KernelSeconds(max(arithmetic, movement), "compute" if arithmetic > movement else "memory")

    def host_s(self, work: Work, is_compiled: bool = False) -> float:
        return 1.0

    def peak_flops(self, dtype: str) -> float | None:
        return {"bf16": 200.0}.get(dtype)


def work(
    flops: float = 0, read: float = 0, phase: str = "forward", again: bool = False, loss: bool = False
) -> Work:
    kind: OpKind = "matmul" if flops else "elementwise"
    return Work(OpCost("op", kind, "bf16", flops, read, 0), phase, again, loss)


TABLE: WorkTable = [
    (work(flops=1000), 2),  # 20 s of arithmetic
    (work(read=30), 1),  # 3 s of movement
    (work(flops=500, phase="backward", again=True), 1),  # 5 s
    (work(flops=100, loss=True, phase="loss"), 1),  # 1 s
    (work(read=20, phase="optimizer"), 2),  # 4 s
    (Work(OpCost("view", "none", "other"), "optimizer", False, False), 8),
]


def test_a_host_that_runs_ahead_shows_only_where_it_is_late() -> None:
    timed = step_time(TABLE, Rates())
    assert timed is not None
    # Only the optimizer's ten operators take the host longer, 10 s, than the device, 4 s.
    assert timed.parts == {
        **dict.fromkeys(PARTS, 0.0),
        "matmul": 20,
        "elementwise": 3,
        "recompute": 5,
        "loss": 1,
        "optimizer": 4,
        "launches": 6,
    }
    assert timed.seconds == 39
    assert timed.bound == "compute"
    # Of 39 s, the arithmetic of forward, backward and loss takes 26.
    assert timed.bound_share == pytest.approx(26 / 39)
    # What is computed again is not useful: 2100 operations, where the peak would make 200 x 39.
    assert timed.mfu == pytest.approx(2100 / 7800)


def test_a_host_that_computes_itself_adds_up() -> None:
    timed = step_time(TABLE, Rates(overlaps=False))
    assert timed is not None
    # 3 operators in forward, one each in backward and loss, 10 in the optimizer.
    assert timed.parts["launches"] == 15
    assert timed.seconds == 33 + 15


def test_a_step_of_small_operators_is_bound_by_the_host() -> None:
    timed = step_time([(work(read=1), 100)], Rates())
    assert timed is not None
    assert (timed.bound, timed.seconds) == ("host", 100)


def test_no_time_where_a_rate_is_unknown() -> None:
    assert step_time(TABLE, Rates(known=False)) is None
