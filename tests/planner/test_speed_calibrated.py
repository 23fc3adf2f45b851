"""Reading times off between the sizes that were measured."""

from __future__ import annotations

import pytest
from tiny import tiny_point, write_tiny_model

from qbench.memory.work.log import Work
from qbench.memory.work.op_costs import OpCost
from qbench.planner.plan import plan
from qbench.planner.speed_calibrated import CalibratedRates
from qbench.planner.times_on_cards import calibration_caveats
from qbench.records.calibration import Calibration, KernelTime


def product(m: int, n: int, k: int, rate: float, op: str = "mm", layout: str = "nn") -> KernelTime:
    flops = 2.0 * m * n * k
    return KernelTime(op, "matmul", "fp32", flops, 0, (1, m, n, k), layout, flops / rate)


def curve(op: str, num_bytes: float, seconds: float, layout: str = "") -> KernelTime:
    return KernelTime(op, "elementwise", "fp32", 0, num_bytes, (), layout, seconds)


SIZES = (10, 1000)
KERNELS = [
    # 1 GFLOP/s where any size is 10, 100 where all are 1000; the largest was not timed.
    *(
        product(m, n, k, 1e9 if 10 in (m, n, k) else 1e11)
        for m in SIZES
        for n in SIZES
        for k in SIZES
        if (m, n, k) != (1000, 1000, 1000)
    ),
    curve("add", 1e3, 1e-6),
    curve("add", 1e5, 4e-6),
    curve("clone", 1e3, 1e-6),
    curve("clone", 1e3, 5e-6, "transposed"),
    curve("zero_", 1e3, 1e-7),
    KernelTime("flash", "attention", "fp32", 100, 0, (1, 100, 100, 64), "", 1e-6),
    KernelTime("flash", "attention", "fp32", 100, 0, (1, 400, 400, 64), "", 4e-6),
]


def calibration(**changes: object) -> Calibration:
    values: dict[str, object] = {
        "device": "cpu",
        "device_name": "CPU",
        "num_threads": 1,
        "versions": {"torch": "2"},
        "dispatch_s": {"forward": 3e-6, "backward": 2e-6, "optimizer": 1e-6},
        "kernels": KERNELS,
    }
    return Calibration(**values | changes)  # type: ignore[arg-type]


RATES = CalibratedRates(calibration())


def seconds(cost: OpCost) -> float | None:
    found = RATES.kernel_s(cost)
    return None if found is None else found.seconds


def mm(m: int, n: int, k: int, op: str = "mm", layout: str = "nn", dtype: str = "fp32") -> OpCost:
    return OpCost(op, "matmul", dtype, 2.0 * m * n * k, 0, 0, (1, m, n, k), layout)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (mm(10, 1000, 1000), 2e7 / 1e9),
        # One as large as none that was timed goes at the rate of one a size smaller.
        (mm(1000, 1000, 1000), 2e9 / 1e9),
        (mm(8000, 1000, 10), 1.6e8 / 1e9),
        # One smaller than any takes as long as the smallest.
        (mm(1, 10, 10), 2e3 / 1e9),
        # Another layout, and operators that are products by another name.
        (mm(10, 10, 10, layout="nt"), 2e3 / 1e9),
        (mm(10, 10, 10, op="linear"), 2e3 / 1e9),
    ],
)
def test_products(cost: OpCost, expected: float) -> None:
    assert seconds(cost) == pytest.approx(expected)


def test_products_between_two_sizes() -> None:
    rates = CalibratedRates(
        calibration(kernels=[product(m, n, k, 1e9 * m) for m in SIZES for n in SIZES for k in SIZES])
    )
    found = rates.kernel_s(mm(100, 1000, 1000))
    assert found is not None
    # 10 and 1000 GFLOP/s at 10 and 1000 rows; 100 rows lie amid their logarithms, at 100.
    assert found.seconds == pytest.approx(2e8 / 1e11)


@pytest.mark.parametrize(
    ("name", "num_bytes", "expected"),
    [
        ("add", 1e3, 1e-6),
        ("add", 1e4, 2e-6),  # Amid 1e3 and 1e5 in logarithms, so amid 1 and 4 us.
        ("add", 1e6, 4e-5),  # Ten times the largest.
        ("add", 100, 1e-7),
        ("add_", 1e3, 1e-6),  # In place, which was not timed.
        ("_foreach_add_", 1e3, 1e-6),
        ("erf", 1e3, 1e-6),  # Elementwise as add.
        ("zeros_like", 1e3, 1e-7),
    ],
)
def test_operators_by_their_bytes(name: str, num_bytes: float, expected: float) -> None:
    assert seconds(OpCost(name, "elementwise", "fp32", 0, num_bytes)) == pytest.approx(expected)


def test_a_transposed_copy_is_another_kernel() -> None:
    for layout, expected in (("transposed", 5e-6), ("strided", 1e-6)):
        copied = OpCost("clone", "copy", "fp32", 0, 1e3, 0, (), layout)
        assert seconds(copied) == pytest.approx(expected)


def test_attention_between_two_lengths() -> None:
    # 100 and 25 MFLOP/s at 100 and 400 tokens; 200 are as far from both.
    found = seconds(OpCost("flash", "attention", "fp32", 1e6, 0, 0, (1, 200, 200, 64)))
    assert found == pytest.approx(1e6 / 5e7)


@pytest.mark.parametrize("cost", [mm(10, 10, 10, dtype="fp16"), OpCost("add", "elementwise", "bf16", 0, 1e3)])
def test_a_dtype_that_was_not_timed_has_no_time(cost: OpCost) -> None:
    assert seconds(cost) is None


def test_the_host_is_as_fast_as_in_its_phase() -> None:
    def host_s(phase: str, again: bool = False) -> float:
        return RATES.host_s(Work(OpCost("view", "none", "other"), phase, again, False))

    assert host_s("loss") == host_s("backward", again=True) == host_s("forward") == 3e-6
    assert (host_s("backward"), host_s("optimizer")) == (2e-6, 1e-6)


def test_a_plan_of_a_calibrated_cpu_has_times(tmp_path: object) -> None:
    model = write_tiny_model(tmp_path, "meta-llama/Llama-3.2-1B")  # type: ignore[arg-type]
    attention = [
        KernelTime(
            f"_scaled_dot_product_flash_attention_for_cpu{way}",
            "attention",
            "fp32",
            1,
            0,
            (1, 1, 1, 1),
            "",
            1e-9,
        )
        for way in ("", "_backward")
    ]
    known = calibration(
        kernels=[*KERNELS, *attention, curve("sum", 1e3, 1e-6), curve("embedding", 1e3, 1e-6)]
    )
    record = plan(tiny_point(model, "fp32"), "cpu", calibrations=[known])
    parts = record.detail["time"]["parts_s"]
    assert record.metrics["step_time_s"] == pytest.approx(sum(parts.values()))
    assert record.metrics["tokens_per_s"] == pytest.approx(64 / record.metrics["step_time_s"])
    assert parts["matmul"] > 0
    assert parts["launches"] > 0
    without = plan(tiny_point(model, "bf16"), "cpu", calibrations=[known])
    assert "step_time_s" not in without.metrics
    assert any("no step time" in caveat for caveat in without.detail["caveats"])
    assert without.metrics["flops"] == record.metrics["flops"]


def table(*costs: OpCost) -> list[tuple[Work, float]]:
    return [(Work(cost, "forward", False, False), 1) for cost in costs]


def test_what_lies_beyond_the_measured_sizes_is_told():
    # The largest product timed has 2 x 1000 x 1000 x 10 operations; one of 8 times that is within reach.
    within = OpCost("mm", "matmul", "fp32", 1.6e8, shape=(1, 1000, 1000, 80), layout="nn")
    beyond = OpCost("mm", "matmul", "fp32", 2e8, shape=(1, 1000, 1000, 100), layout="nn")
    assert calibration_caveats(table(within), RATES) == []
    (told,) = calibration_caveats(table(beyond), RATES)
    assert told.startswith("100 % of the planned kernel time is of kernels more than 8 times as large")
    # 1e5 bytes of the largest add; nine times that is the longer of two kernels, 36 of 37 us.
    adds = [OpCost("add", "elementwise", "fp32", read_bytes=size) for size in (9e5, 1e3)]
    (told,) = calibration_caveats(table(*adds), RATES)
    assert told.startswith("97 % of")


def test_what_was_not_timed_is_named():
    cost = OpCost("mm", "matmul", "bf16", 2e3, shape=(1, 10, 10, 10), layout="nn")
    assert calibration_caveats(table(cost), RATES) == [
        "no step time: the calibration timed nothing like mm in bf16"
    ]
