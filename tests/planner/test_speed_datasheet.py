"""Datasheet peaks times published efficiencies."""

from __future__ import annotations

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.memory.work.log import Work
from qbench.memory.work.op_costs import OpCost
from qbench.planner.speed_datasheet import DatasheetRates

A100 = DatasheetRates(find_gpu("A100-SXM4-80GB"))
PRODUCT = OpCost("mm", "matmul", "bf16", 2 * 4096**3, 4 * 4096**2, 2 * 4096**2)


def test_a_large_product_is_bound_by_arithmetic() -> None:
    found = A100.kernel_s(PRODUCT)
    assert found is not None
    # 137.4 GFLOP at 85.9 % of 312 TFLOP/s, after a launch of 2 us.
    assert found.seconds == pytest.approx(2e-6 + 2 * 4096**3 / (0.859 * 312e12))
    assert found.bound == "compute"


def test_an_addition_is_bound_by_memory() -> None:
    found = A100.kernel_s(OpCost("add", "elementwise", "bf16", 0, 2e9, 1e9))
    assert found is not None
    # 3 GB at 90 % of 2039 GB/s.
    assert found.seconds == pytest.approx(2e-6 + 3e9 / (0.90 * 2039e9))
    assert found.bound == "memory"


def test_attention_has_shares_of_its_own() -> None:
    forward, backward = (
        A100.kernel_s(OpCost(name, "attention", "bf16", 1e12)) for name in ("flash", "flash_backward")
    )
    assert forward is not None
    assert backward is not None
    assert forward.seconds == pytest.approx(2e-6 + 1e12 / (0.615 * 312e12))
    assert backward.seconds == pytest.approx(2e-6 + 1e12 / (0.53 * 312e12))


def test_fused_attention_in_fp32_takes_three_products_in_tf32_from_ampere_on() -> None:
    cost = OpCost("_efficient_attention_forward", "attention", "fp32", 1e12)
    found, before = A100.kernel_s(cost), DatasheetRates(find_gpu("V100")).kernel_s(cost)
    assert found is not None
    assert before is not None
    # 156 / 3 = 52 TFLOP/s on the A100; 15.7 in fp32 on the V100.
    assert found.seconds == pytest.approx(2e-6 + 1e12 / (0.615 * 52e12))
    assert before.seconds == pytest.approx(2e-6 + 1e12 / (0.615 * 15.7e12))


def test_a_card_without_the_dtype_has_no_time() -> None:
    assert DatasheetRates(find_gpu("T4")).kernel_s(PRODUCT) is None


def test_the_host_launches_kernels_and_looks_at_views() -> None:
    def host_s(name: str, kind: str) -> float:
        return A100.host_s(Work(OpCost(name, kind, "bf16"), "optimizer", False, False))  # type: ignore[arg-type]

    assert host_s("view", "none") == pytest.approx(6e-6)
    assert host_s("mul", "elementwise") == pytest.approx(8e-6)
    # At least thirty tensors share a multi-tensor kernel.
    assert host_s("_foreach_mul_", "elementwise") == pytest.approx(8e-6 / 30)
