"""Compiled steps: one kernel of each run of pointwise work, which reads and writes what others share."""

from __future__ import annotations

from qbench.memory.work.fusion import Ran, Storages, fused
from qbench.memory.work.op_costs import OpCost, OpKind

FORWARD, BACKWARD = ("forward", False), ("backward", False)


def ran(kind: OpKind, part: tuple[str, bool], reads: Storages, writes: Storages, op: str = "") -> Ran:
    sizes = (sum(size for _, size in reads), sum(size for _, size in writes))
    return Ran(OpCost(op or kind, kind, "bf16", 0, *sizes), part, reads, writes)


def moved(costs: list[OpCost | None]) -> list[tuple[int, int] | None]:
    return [None if cost is None else (cost.read_bytes, cost.written_bytes) for cost in costs]


def test_a_run_reads_what_was_there_and_writes_what_a_product_reads() -> None:
    # x * y, then silu, then a product with weights w; 1 and 2 are x and y, 3 stays in the kernel.
    steps = [
        ran("elementwise", FORWARD, ((1, 100), (2, 10)), ((3, 100),)),
        ran("none", FORWARD, (), ()),
        ran("elementwise", FORWARD, ((3, 100), (1, 100)), ((4, 100),)),
        ran("matmul", FORWARD, ((4, 100), (5, 40)), ((6, 80),)),
    ]
    assert moved(fused(steps)) == [(110, 100), None, None, (140, 80)]


def test_backward_computes_again_what_only_pointwise_work_kept() -> None:
    # 2 goes into the product and is kept; 3 is read by backward's pointwise work alone: it reads 1 for it.
    steps = [
        ran("elementwise", FORWARD, ((1, 100),), ((2, 50), (3, 200))),
        ran("matmul", FORWARD, ((2, 50), (7, 40)), ((8, 80),)),
        ran("elementwise", BACKWARD, ((8, 80), (3, 200)), ((9, 80),)),
        ran("matmul", BACKWARD, ((9, 80), (7, 40)), ((10, 50),)),
    ]
    assert moved(fused(steps)) == [(100, 50), (90, 80), (180, 80), (120, 50)]


def test_what_is_changed_in_place_is_read_and_written() -> None:
    steps = [ran("elementwise", BACKWARD, ((1, 64), (2, 64)), ((1, 64),), "add_")]
    assert moved(fused(steps)) == [(128, 64)]


def test_the_optimizer_and_copies_of_shards_stay_as_they_are() -> None:
    steps = [
        ran("copy", FORWARD, ((1, 8),), ((2, 8),), "split_with_sizes_copy"),
        ran("elementwise", ("optimizer", False), ((3, 8),), ((3, 8),)),
        ran("elementwise", ("optimizer", False), ((3, 8),), ((4, 8),)),
    ]
    assert fused(steps) == [step.cost for step in steps]
