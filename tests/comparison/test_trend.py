"""History over runs: one value a run, and the runs with which a new level began."""

from __future__ import annotations

import builtins
import random
from typing import Any

import pytest

from qbench.comparison.trend import Series, trend
from qbench.errors import QbenchError
from qbench.records.record import Record
from tests.comparison.hand_made import ENVIRONMENT, make_record

GIB = 1 << 30


def night(number: int, peft: str = "0.21.2", **changes: Any) -> Record:
    """Return a record of one of 60 nights."""
    versions = {"torch": "2.13.0", "peft": peft}
    values = {
        "run_id": f"night-{number:02}",
        "created_at": f"2026-{9 + number // 30:02}-{1 + number % 30:02}T02:00:00+00:00",
        "environment": ENVIRONMENT | {"versions": versions},
    }
    return make_record(**(values | changes))


def plans(*peaks: int) -> list[Record]:
    return [night(n, metrics={"peak_allocated_bytes": peak}) for n, peak in enumerate(peaks)]


def test_a_run_is_one_value_the_median_of_its_processes():
    records = [
        night(n, kind="measurement", metrics={"step_time_s": [time]}, detail={"repeat": repeat})
        for n in (2, 0, 1)
        for repeat, time in enumerate((1.0 + n, 9.0, 0.5))
    ]
    (series,) = trend(records, find_changes=False)
    assert [sample.value for sample in series.runs] == [1.0, 2.0, 3.0]
    assert [sample.run_id for sample in series.runs] == ["night-00", "night-01", "night-02"]
    assert (series.metric, series.machine) == ("step_time_s", "NVIDIA A100-SXM4-80GB")


def test_points_kinds_and_machines_are_apart():
    other = ENVIRONMENT | {"device_name": "NVIDIA L4"}
    metrics = {"peak_allocated_bytes": GIB}
    records = [
        *plans(GIB, GIB, GIB),
        *(night(n, r=8, metrics=metrics) for n in range(3)),
        *(night(n, kind="measurement", metrics=metrics) for n in range(3)),
        *(night(n, kind="measurement", metrics=metrics, environment=other) for n in range(3)),
    ]
    found = trend(records, find_changes=False)
    assert [(one.kind, one.machine) for one in found] == [
        ("plan", ""),
        ("plan", ""),
        ("measurement", "NVIDIA A100-SXM4-80GB"),
        ("measurement", "NVIDIA L4"),
    ]


def test_plans_for_other_cards_are_apart_where_their_numbers_depend_on_them():
    def planned(first: int, gpu: str, capability: list[int], peak: int) -> list[Record]:
        detail = {"fits": [{"gpu": gpu, "fits": True}], "compute_capability": capability}
        metrics = {"peak_allocated_bytes": peak, "step_time_s": 1.0}
        return [night(n, metrics=metrics, detail=detail) for n in range(first, first + 3)]

    records = [
        *planned(0, "T4", [7, 5], 2 * GIB),
        *planned(3, "RTX 3070", [8, 6], GIB),
        *planned(6, "A40", [8, 6], GIB),
    ]
    found = trend(records, find_changes=False)
    # Memory by what the kernels are chosen by, times by the card.
    assert [(one.metric, one.machine, len(one.runs)) for one in found] == [
        ("peak_allocated_bytes", "compute capability 7.5", 3),
        ("step_time_s", "T4", 3),
        ("peak_allocated_bytes", "compute capability 8.6", 6),
        ("step_time_s", "RTX 3070", 3),
        ("step_time_s", "A40", 3),
    ]


def test_two_runs_or_failed_ones_are_no_history():
    assert trend(plans(GIB, GIB), find_changes=False) == []
    failed = night(2, outcome="error", metrics={})
    assert trend([*plans(GIB, GIB), failed], find_changes=False) == []


def only(records: list[Record]) -> Series:
    pytest.importorskip("otava", reason="Apache Otava is not installed")
    (series,) = trend(records)
    return series


def test_a_step_of_planned_memory_is_found_with_what_changed():
    records = plans(*[14 * GIB] * 8)
    records += [night(n, "0.22.0", metrics={"peak_allocated_bytes": 15 * GIB}) for n in range(8, 16)]
    (step,) = only(records).changes
    assert (step.index, step.before, step.after, step.direction) == (8, 14 * GIB, 15 * GIB, "worse")
    assert step.change == pytest.approx(1 / 14)
    assert step.software == (("peft", "0.21.2", "0.22.0"),)


def test_a_constant_history_has_no_step():
    assert only(plans(*[14 * GIB] * 20)).changes == ()


def test_a_step_below_what_check_minds_is_none():
    # 0.5 % of memory, where `check` allows 1 %.
    assert only(plans(*[1000 * GIB] * 10, *[1005 * GIB] * 10)).changes == ()


def speeds(*levels: float) -> list[Record]:
    noise = random.Random(7)
    return [
        night(n, kind="measurement", metrics={"step_time_s": [level * noise.gauss(1, 0.02)]})
        for n, level in enumerate(levels)
    ]


def test_noise_of_two_percent_alone_has_no_step():
    assert only(speeds(*[1.0] * 60)).changes == ()


def test_a_slowdown_of_eight_percent_in_noise_of_two_is_found_within_two_runs():
    (step,) = only(speeds(*[1.0] * 30, *[1.08] * 30)).changes
    assert abs(step.index - 30) <= 2
    assert step.direction == "worse"
    assert step.change == pytest.approx(0.08, abs=0.015)


def test_without_otava_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("otava"):
            raise ImportError("No module named 'otava'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(QbenchError, match=r"pip install 'qbench\[trend\]'"):
        trend(plans(GIB, GIB, GIB))
