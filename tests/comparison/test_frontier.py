"""The frontier and QLoRA's range, from records made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from qbench.comparison.frontier import frontier, payoffs
from qbench.comparison.results import gather
from qbench.records.record import Record
from tests.comparison.hand_made import make_record


def swept(r: int, reserved: int | None, speed: float | None, **changes: Any) -> Record:
    metrics = {"peak_allocated_bytes": 10 * r, "peak_reserved_bytes": reserved, "tokens_per_s": speed}
    return make_record(r=r, metrics=metrics, **changes)


def optimal(records: list[Record]) -> list[int]:
    return [point.result.settings["r"] for point in frontier(gather(records)) if point.is_optimal]


def test_a_point_is_optimal_unless_another_one_beats_it():
    # r: memory, speed. 2 is beaten by 1 (less memory, faster); 8 by 4 (as fast, less memory).
    records = [swept(1, 10, 100.0), swept(2, 11, 90.0), swept(4, 20, 150.0), swept(8, 30, 150.0)]
    assert optimal(records) == [1, 4]


def test_equal_points_are_both_optimal():
    assert optimal([swept(1, 10, 100.0), swept(2, 10, 100.0)]) == [1, 2]


def test_results_without_speed_are_left_out_and_other_models_do_not_compete():
    records = [swept(1, 10, 100.0), swept(2, 5, None), swept(4, 9, 200.0, model="gpt2")]
    assert optimal(records) == [1, 4]


def test_allocated_memory_counts_where_one_result_does_not_know_the_reserve():
    points = frontier(gather([swept(1, 50, 100.0), swept(2, None, 90.0)]))
    # Allocated is 10 x r.
    assert [(point.metric, point.memory_bytes) for point in points] == [
        ("peak_allocated_bytes", 10),
        ("peak_allocated_bytes", 20),
    ]


def planned(precision: str, seq_len: int, *cards: tuple[str, bool, float]) -> Record:
    fits = [{"gpu": gpu, "fits": fits, "tokens_per_s": speed} for gpu, fits, speed in cards]
    return make_record(precision=precision, seq_len=seq_len, detail={"fits": fits})


def test_qlora_pays_where_it_fits_and_lora_does_not():
    records = [
        planned("bf16", 1024, ("A", True, 100.0), ("B", True, 200.0)),
        planned("nf4", 1024, ("A", True, 80.0), ("B", True, 150.0)),
        planned("bf16", 2048, ("A", False, 0.0), ("B", True, 200.0)),
        planned("nf4", 2048, ("A", True, 80.0), ("B", True, 150.0)),
        planned("bf16", 4096, ("A", False, 0.0), ("B", True, 200.0)),
        planned("nf4", 4096, ("A", True, 80.0), ("B", True, 150.0)),
        planned("bf16", 8192, ("A", False, 0.0), ("B", True, 200.0)),
        planned("nf4", 8192, ("A", False, 0.0), ("B", True, 150.0)),
    ]
    (payoff,) = payoffs(gather(records))
    assert (payoff.gpu, payoff.axis, payoff.from_value, payoff.up_to) == ("A", "seq_len", 2048, 4096)
    assert (payoff.precision, payoff.baseline_precision) == ("nf4", "bf16")
    # Both fit at 1,024 tokens only: 80 / 100.
    assert payoff.speed_ratio == pytest.approx((0.8, 0.8))


def test_one_value_is_no_range():
    records = [planned("bf16", 1024, ("A", False, 1.0)), planned("nf4", 1024, ("A", True, 1.0))]
    assert payoffs(gather(records)) == []
