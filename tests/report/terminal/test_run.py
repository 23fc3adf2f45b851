"""The text of a run: each point planned beside measured, against 16-bit LoRA."""

from __future__ import annotations

from dataclasses import replace

from qbench.comparison.results import gather
from qbench.report.terminal.run import run_lines
from qbench.scenario.schema import Point
from qbench.units import MIB
from tests.comparison.hand_made import finding, make_record


def record(precision: str, kind: str, peak_mib: int, **detail):
    seconds = {} if kind == "plan" else {"step_time_s": [2.0, 2.0]}
    return make_record(
        point=Point(model="a/b", precision=precision, train={"seq_len": 100}),
        kind=kind,
        metrics={"peak_allocated_bytes": peak_mib * MIB, **seconds},
        detail=detail,
    )


def test_each_point_is_one_row():
    records = [
        record("bf16", "plan", 400),
        record("nf4", "plan", 101),
        record("bf16", "measurement", 400, loss_before=4.0, loss_after=3.5),
        record("nf4", "measurement", 100, loss_before=4.25, loss_after=3.75),
    ]
    header, _, bf16, nf4 = run_lines(gather(records))
    assert header.split("  ")[0] == "precision"
    # 100 tokens in 2 s; the baseline saves nothing against itself; equal peaks differ by 0 B.
    assert bf16.split() == [
        "bf16",
        "400.0",
        "MiB",
        "400.0",
        "MiB",
        "0",
        "B",
        "baseline",
        "50.0",
        "n/a",
        "4.000",
        "->",
        "3.500",
    ]
    # (101 - 100) / 100 = +1 %; 1 - 100 / 400 = 75 % saved; the same speed.
    assert nf4.split() == [
        "nf4",
        "101.0",
        "MiB",
        "100.0",
        "MiB",
        "+1.00",
        "%",
        "75.0",
        "%",
        "50.0",
        "1.00",
        "x",
        "4.250",
        "->",
        "3.750",
    ]


def test_a_measurement_that_ended_well_without_a_peak_says_that_there_is_none():
    made = record("bf16", "measurement", 400)
    unwatched = replace(made, metrics={"step_time_s": [0.5]})
    plan = record("bf16", "plan", 400)
    assert "ok" not in run_lines(gather([plan, unwatched]))[2].split()
    crashed = replace(unwatched, outcome="crashed")
    assert "crashed" in run_lines(gather([plan, crashed]))[2].split()


def test_columns_without_a_value_are_left_out():
    header, _, row = run_lines(gather([record("bf16", "plan", 400)]))
    assert header.split() == ["precision", "Peak", "planned", "Saved"]
    assert row.split() == ["bf16", "400.0", "MiB", "baseline"]


def test_a_speed_in_doubt_is_marked_and_the_doubt_said():
    busy = [finding("other_cpus_busy", "warn", 1.5, "other processes used the CPUs during the timed steps")]
    records = [
        record("bf16", "measurement", 400, validity=busy),
        record("nf4", "measurement", 100),
        record("nf4-dq", "plan", 100),
    ]
    *_, bf16, nf4, planned, doubt = run_lines(gather(records))
    assert "50.0 ?" in bf16
    # The ratio of an undoubted speed to a doubted one is in doubt; the speed itself is not.
    assert "50.0 " in nf4
    assert "50.0 ?" not in nf4
    assert "1.00 x ?" in nf4
    assert "?" not in planned
    assert doubt == "? speed in doubt: other processes used the CPUs during the timed steps"
