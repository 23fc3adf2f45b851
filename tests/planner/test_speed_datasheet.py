"""Datasheet peaks times published efficiencies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qbench.catalog.gpus import find_gpu
from qbench.memory.work.log import Work
from qbench.memory.work.op_costs import OpCost
from qbench.planner.speed_datasheet import Case, DatasheetRates
from qbench.planner.times_on_cards import seconds_between

A100 = DatasheetRates(find_gpu("A100-SXM4-80GB"))
PRODUCT = OpCost("mm", "matmul", "bf16", 2 * 4096**3, 4 * 4096**2, 2 * 4096**2)
ADDITION = OpCost("add", "elementwise", "bf16", 0, 2 * 10**9, 10**9)


def seconds(cost: OpCost, card: str = "A100-SXM4-80GB", case: Case = "value") -> float:
    found = DatasheetRates(find_gpu(card), case).kernel_s(cost)
    assert found is not None
    return found.seconds


def test_a_large_product_is_bound_by_arithmetic() -> None:
    found = A100.kernel_s(PRODUCT)
    assert found is not None
    # 137.4 GFLOP at 86 % of 312 TFLOP/s, and the 12 us of a product.
    assert found.seconds == pytest.approx(12e-6 + 2 * 4096**3 / (0.86 * 312e12))
    assert found.bound == "compute"


def test_a_product_in_fp32_has_a_share_of_its_own() -> None:
    cost = OpCost("mm", "matmul", "fp32", 10**12)
    # 89 % of 19.5 TFLOP/s on the A100, 30 % of 30.3 on the L4.
    assert seconds(cost) == pytest.approx(12e-6 + 1 / (0.89 * 19.5))
    assert seconds(cost, "L4") == pytest.approx(4e-6 + 1 / (0.30 * 30.3))


def test_an_addition_is_bound_by_memory() -> None:
    found = A100.kernel_s(ADDITION)
    assert found is not None
    # 3 GB at 68 % of 87 % of 2039 GB/s.
    assert found.seconds == pytest.approx(2e-6 + 3e9 / (0.68 * 0.87 * 2039e9))
    assert found.bound == "memory"


def test_a_multi_tensor_operator_goes_through_memory_in_large_pieces() -> None:
    cost = OpCost("_foreach_add_", "elementwise", "bf16", 0, 2 * 10**9, 10**9)
    assert seconds(cost) == pytest.approx(2e-6 + 3e9 / (0.87 * 2039e9))


def test_attention_reaches_more_the_longer_it_is() -> None:
    def attention(name: str, tokens: int) -> float:
        return seconds(OpCost(name, "attention", "bf16", 10**12, shape=(32, tokens, tokens, 128)))

    assert attention("_flash_attention", 1024) == pytest.approx(2e-6 + 1 / (0.36 * 312))
    assert attention("_flash_attention", 8192) == pytest.approx(2e-6 + 1 / (0.55 * 312))
    # 0.36 x 63/73 = 0.311.
    assert attention("_flash_attention_backward", 1024) == pytest.approx(2e-6 + 1 / (0.311 * 312))


def test_fused_attention_in_fp32_takes_three_products_in_tf32_from_ampere_on() -> None:
    cost = OpCost("_efficient_attention_forward", "attention", "fp32", 10**12)
    # 156 / 3 = 52 TFLOP/s on the A100; 15.7 in fp32 on the V100; 57 % for long sequences.
    assert seconds(cost) == pytest.approx(2e-6 + 1 / (0.57 * 52))
    assert seconds(cost, "V100-SXM2-32GB") == pytest.approx(2e-6 + 1 / (0.57 * 15.7))


def test_a_card_without_the_dtype_has_no_time() -> None:
    assert DatasheetRates(find_gpu("T4")).kernel_s(PRODUCT) is None


def test_the_host_launches_kernels_and_looks_at_views() -> None:
    def host_s(name: str, kind: str) -> float:
        return A100.host_s(Work(OpCost(name, kind, "bf16"), "optimizer", False, False))  # type: ignore[arg-type]

    assert host_s("view", "none") == pytest.approx(6e-6)
    assert host_s("mul", "elementwise") == pytest.approx(8e-6)
    # Compiled code launches a kernel and dispatches nothing.
    fused = Work(OpCost("fused", "elementwise", "bf16"), "forward", False, False)
    assert A100.host_s(fused, is_compiled=True) == pytest.approx(2e-6)
    # At least thirty tensors share a multi-tensor kernel.
    assert host_s("_foreach_mul_", "elementwise") == pytest.approx(8e-6 / 30)


def test_the_ends_of_a_range_take_each_figure_at_its_end() -> None:
    # A launch of 1 us and pointwise operators at the whole share, or 3 us and half of it.
    assert seconds(ADDITION, case="fastest") == pytest.approx(1e-6 + 3e9 / (0.90 * 2039e9))
    assert seconds(ADDITION, case="slowest") == pytest.approx(3e-6 + 3e9 / (0.50 * 0.87 * 2039e9))


def test_a_step_lies_between_the_ends_of_its_range() -> None:
    gpu = find_gpu("A100-SXM4-80GB")
    work = [(Work(cost, "forward", False, False), 1.0) for cost in (PRODUCT, ADDITION)]
    traced: Any = SimpleNamespace(work=work, num_gpus=1, collectives=(), is_compiled=False)
    between = seconds_between(traced, gpu, A100)
    assert between is not None
    assert between[0] < seconds(PRODUCT) + seconds(ADDITION) < between[1]
