from __future__ import annotations

import math
from typing import Any

import pytest

from qbench.comparison.environments import (
    compare_environments,
    package_changes,
    ratio_interval,
)
from qbench.comparison.methods import Difference
from qbench.records.record import Record
from qbench.report.environments import as_json, packages_table, point_table, summary_lines
from tests.comparison.hand_made import make_record


def measured(repeat: int, peak: int = 1000, seconds: float = 1.0, **changes: Any) -> Record:
    metrics = {
        "peak_allocated_bytes": peak,
        "trainable_params": 10,
        "breakdown_bytes": {"weights": 600, "adapters": peak - 600},
        "step_time_s": [9 * seconds, seconds, seconds],
    }
    return make_record(**{"kind": "measurement", "metrics": metrics, "detail": {"repeat": repeat}} | changes)


def test_packages_of_a_step_come_first_and_few_of_the_others_are_listed():
    others = {f"other-{number}": "1" for number in range(9)}
    changes = package_changes({"torch": "1", "zlib": "1", **others}, {"torch": "2", "trl": "1"})
    table = packages_table(changes)
    assert [row[0] for row in table.rows] == ["torch", "trl", *(f"other-{number}" for number in range(5))]
    assert table.notes == ("5 more packages differ; --json lists them.",)


def test_only_packages_that_differ_are_named():
    a = {"torch": "2.13.0", "peft": "0.11.1", "old": "1"}
    b = {"torch": "2.13.0", "peft": "0.12.0", "new": "2"}
    assert package_changes(a, b) == [
        Difference("peft", "0.11.1", "0.12.0"),
        Difference("new", None, "2"),
        Difference("old", "1", None),
    ]


def test_equal_records_show_no_difference():
    sides = [[measured(0), measured(1)]] * 2
    (change,) = compare_environments(*sides)
    assert all(exact.equal for exact in change.exact)
    assert change.breakdown == {}
    assert summary_lines([change])[:2] == [
        "Memory: equal in the one point.",
        "Parameter counts: equal in the one point.",
    ]


def test_a_difference_is_told_to_the_byte_and_by_category():
    (change,) = compare_environments([measured(0)], [measured(0, peak=1250)])
    (peak,) = (exact for exact in change.exact if exact.metric == "peak_allocated_bytes")
    assert (peak.difference, peak.percent) == (250, 25.0)
    assert change.breakdown == {"adapters": 250}
    rows = {row[0]: row[-1] for row in point_table(change).rows}
    assert rows["Peak allocated"] == "+250 B (+25 %)"
    assert rows["  adapters"] == "+250 B"
    assert rows["Trainable"] == "equal"
    assert as_json([change])[0]["metrics"]["peak_allocated_bytes"]["difference"] == 250


def test_unlike_numbers_in_one_environment_are_noted():
    (change,) = compare_environments([measured(0), measured(1, peak=1002)], [measured(0), measured(1)])
    (note,) = point_table(change).notes
    assert note.startswith("Peak allocated differs between processes")


def test_interval_of_three_ratios():
    # logs: ln 1.1, 0, -ln 1.1; mean 0, deviation ln 1.1 = 0.09531; t(0.975, 2) = 4.303;
    # half width 4.303 x 0.09531 / sqrt(3) = 0.23678; exp gives 0.7892 and 1.2672.
    ratio, interval = ratio_interval([1.1, 1.0, 1 / 1.1])
    assert ratio == pytest.approx(1.0)
    assert interval == pytest.approx((0.7892, 1.2672), abs=1e-4)


@pytest.mark.parametrize("ratios", [[2.0], [2.0, 2.0]])
def test_one_pair_or_two_have_no_interval(ratios: list[float]):
    assert ratio_interval(ratios) == (pytest.approx(2.0), None)


def test_interval_of_many_ratios_goes_over_to_the_normal_quantile():
    # 101 logs of +-0.1 and one 0: deviation 0.1; t(0.975, 100) = 1.984 (tables).
    ratios = [math.exp(0.1 * (-1) ** index) for index in range(100)] + [1.0]
    _, interval = ratio_interval(ratios)
    assert interval is not None
    assert math.log(interval[1]) == pytest.approx(1.984 * 0.1 / math.sqrt(101), rel=1e-3)


def test_times_are_paired_by_process_and_steps_are_not_counted_as_processes():
    # B takes 1.2 times A in each process, whatever the drift between the processes.
    a = [measured(repeat, seconds=1.0 + repeat) for repeat in range(3)]
    b = [measured(repeat, seconds=1.2 * (1.0 + repeat)) for repeat in (2, 1, 0)]
    (change,) = compare_environments(a, b)
    assert change.time is not None
    assert change.time.ratio == pytest.approx(1.2)
    assert change.time.interval == pytest.approx((1.2, 1.2))
    assert change.time.resolved
    assert "B is slower in 1, faster in 0 of 1 points" in summary_lines([change])[2]
    assert "3 pairs of processes are few" in summary_lines([change])[2]


def test_a_point_that_failed_on_one_side_is_counted_and_its_ending_shown():
    (change,) = compare_environments([measured(0)], [measured(0, outcome="oom", metrics={})])
    assert not change.completed
    assert point_table(change).rows == (("Outcome", "ok", "oom", ""),)
    assert summary_lines([change]) == [
        "1 of 1 points cannot be compared: a number is missing on one side or both."
    ]
