"""The gate: every case that a baseline can be in, with its verdict and its exit code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from qbench.comparison.check import Check, Finding, check
from qbench.comparison.verdicts import NEAR, Tolerance, Unlike
from qbench.errors import NotComparableError
from qbench.records.parts import Environment
from qbench.records.record import Record
from qbench.words.verdicts import reason_text
from tests.comparison.hand_made import ENVIRONMENT, make_point, make_record

GIB, MIB = 1 << 30, 1 << 20
DETAIL: dict[str, Any] = {
    "model": {"quantized_modules": 224, "dtypes": {"norms": "float32"}},
    "static_breakdown_bytes": {"adapters": 79 * MIB},
    "protocol": {"warmup_steps": 2, "steps": 10},
}


def processes(*times: float, peak: int | tuple[int, ...] = 7 * GIB, **changes: Any) -> list[Record]:
    """Return one measurement for each time (of each of its two steps), with the given peaks."""
    peaks = (peak,) * len(times) if isinstance(peak, int) else peak
    metrics = changes.pop("metrics", {})
    detail = DETAIL | changes.pop("detail", {})
    return [
        make_record(
            kind="measurement",
            metrics={
                "step_time_s": [time, time],
                "peak_allocated_bytes": size,
                "trainable_params": 39_976_960,
                "breakdown_bytes": {"weights": size - GIB, "activations": GIB},
                **metrics,
            },
            detail={**detail, "repeat": repeat},
            **changes,
        )
        for repeat, (time, size) in enumerate(zip(times, peaks, strict=True))
    ]


STEADY = (1.0, 1.001, 0.999)

OUT_OF_MEMORY = make_record(kind="measurement", outcome="oom", metrics={}, detail=DETAIL | {"repeat": 3})

OUT_OF_MEMORY_TWICE = [replace(OUT_OF_MEMORY, detail=DETAIL | {"repeat": repeat}) for repeat in (3, 4)]


def verdict_of(found: Check, metric: str) -> Finding:
    (finding,) = [finding for finding in found.findings if finding.metric == metric]
    return finding


CASES: dict[str, tuple[list[Record], list[Record], str, str, int]] = {
    # name: baseline, run, metric, verdict, exit code
    "deterministic memory without variance": (
        processes(*STEADY), processes(*STEADY), "peak_allocated_bytes", "same", 0,
    ),
    "memory 2 % up": (
        processes(*STEADY), processes(*STEADY, peak=int(7.14 * GIB)), "peak_allocated_bytes", "worse", 1,
    ),
    "memory 2 % down": (
        processes(*STEADY), processes(*STEADY, peak=int(6.86 * GIB)), "peak_allocated_bytes", "better", 0,
    ),
    "memory within a share of it": (
        processes(*STEADY), processes(*STEADY, peak=int(7.06 * GIB)), "peak_allocated_bytes", "same", 0,
    ),
    "memory of a small model within a MiB": (
        processes(*STEADY, peak=20 * MIB, metrics={"breakdown_bytes": None}),
        processes(*STEADY, peak=21 * MIB, metrics={"breakdown_bytes": None}),
        "peak_allocated_bytes", "same", 0,
    ),
    "processes that disagree about memory": (
        processes(*STEADY, metrics={"breakdown_bytes": None}),
        processes(*STEADY, peak=(7 * GIB, 7 * GIB, 8 * GIB), metrics={"breakdown_bytes": None}),
        "peak_allocated_bytes", "ambiguous", 0,
    ),
    "a category that grew by more than 1 % of the peak": (
        processes(*STEADY),
        processes(*STEADY, metrics={"breakdown_bytes": {"weights": 5.9 * GIB, "activations": 1.1 * GIB}}),
        "breakdown_bytes.activations", "worse", 1,
    ),
    "a category that grew by less": (
        processes(*STEADY),
        processes(*STEADY, metrics={"breakdown_bytes": {"weights": 6 * GIB, "activations": 1.06 * GIB}}),
        "breakdown_bytes.activations", "same", 0,
    ),
    "unequal counts of processes": (processes(*STEADY), processes(*[1.0] * 4), "step_time_s", "same", 0),
    "unequal counts, slower": (processes(*STEADY), processes(*[1.1] * 4), "step_time_s", "worse", 1),
    "one process a side": (processes(1.0), processes(1.3), "step_time_s", "ambiguous", 0),
    "one process against three": (processes(*STEADY), processes(1.3), "step_time_s", "ambiguous", 0),
    "two processes a side": (processes(1.0, 1.0), processes(1.3, 1.3), "step_time_s", "ambiguous", 0),
    "processes that agree although their steps do not": (
        processes(*STEADY),
        processes(*STEADY, metrics={"step_time_s": [0.9, 1.0, 1.1, 1.2, 1.3]}),
        "step_time_s", "ambiguous", 0,
    ),
    "faster": (processes(*STEADY), processes(0.8, 0.8, 0.81), "step_time_s", "better", 0),
    "fewer tokens a second": (processes(*STEADY), processes(1.2, 1.2, 1.21), "tokens_per_s", "worse", 1),
    "times without any variance": (processes(*[1.0] * 3), processes(*[1.0] * 3), "step_time_s", "same", 0),
    "slower by less than the minimum effect": (
        processes(*STEADY), processes(1.01, 1.011, 1.009), "step_time_s", "same", 0,
    ),
    "noise that hides the answer": (
        processes(1.0, 1.2, 0.8), processes(1.1, 0.8, 1.3), "step_time_s", "ambiguous", 0,
    ),
    "not a number": (
        processes(*STEADY), processes(*STEADY, metrics={"step_time_s": [math.nan]}),
        "step_time_s", "missing", 1,
    ),
    "not a number on the disk": (
        processes(*STEADY), processes(*STEADY, metrics={"step_time_s": [None]}), "step_time_s", "missing", 1,
    ),
    "no number on the disk of the baseline": (
        processes(*STEADY, metrics={"peak_allocated_bytes": None}), processes(*STEADY),
        "peak_allocated_bytes", "not comparable", 2,
    ),
    "not a number in the baseline": (
        processes(*STEADY, metrics={"peak_allocated_bytes": math.nan}), processes(*STEADY),
        "peak_allocated_bytes", "not comparable", 2,
    ),
    "no time on the disk of the baseline": (
        processes(*STEADY, metrics={"step_time_s": [None]}), processes(*STEADY),
        "step_time_s", "not comparable", 2,
    ),
    "a metric that the run lacks": (
        processes(*STEADY, metrics={"static_bytes": 5 * GIB}), processes(*STEADY),
        "static_bytes", "missing", 1,
    ),
    "a metric that the baseline lacks": (
        processes(*STEADY), processes(*STEADY, metrics={"static_bytes": 5 * GIB}), "static_bytes", "new", 0,
    ),
    "one parameter more": (
        processes(*STEADY), processes(*STEADY, metrics={"trainable_params": 39_976_961}),
        "trainable_params", "changed", 1,
    ),
    "fewer quantized modules": (
        processes(*STEADY), processes(*STEADY, detail={"model": {"quantized_modules": 223}}),
        "quantized_modules", "changed", 1,
    ),
    "another dtype": (
        processes(*STEADY),
        processes(*STEADY, detail={"model": {"quantized_modules": 224, "dtypes": {"norms": "bfloat16"}}}),
        "dtypes", "changed", 1,
    ),
    "larger adapters": (
        processes(*STEADY), processes(*STEADY, detail={"static_breakdown_bytes": {"adapters": 80 * MIB}}),
        "adapter_bytes", "changed", 1,
    ),
    "reserved memory is shown only": (
        processes(*STEADY, metrics={"peak_reserved_bytes": 8 * GIB}),
        processes(*STEADY, metrics={"peak_reserved_bytes": 10 * GIB}),
        "peak_reserved_bytes", "worse", 0,
    ),
    "a measured speed that is not valid": (
        processes(*STEADY),
        processes(*STEADY, detail={"validity": [{"voids": ["step_time_s", "tokens_per_s"]}]}),
        "step_time_s", "ambiguous", 0,
    ),
    "out of memory": (
        processes(*STEADY), [make_record(kind="measurement", outcome="oom", metrics={}, detail=DETAIL)],
        "outcome", "worse", 1,
    ),
    "no longer out of memory": (
        [make_record(kind="measurement", outcome="oom", metrics={}, detail=DETAIL)], processes(*STEADY),
        "outcome", "better", 0,
    ),
    "out of memory before and now": (
        [make_record(kind="measurement", outcome="oom", metrics={}, detail=DETAIL)] * 2,
        [make_record(kind="measurement", outcome="oom", metrics={}, detail=DETAIL)] * 2,
        "outcome", "same", 0,
    ),
    "some processes out of memory before and now": (
        [*processes(*STEADY), OUT_OF_MEMORY], [*processes(*STEADY), OUT_OF_MEMORY], "outcome", "same", 0,
    ),
    "some processes out of memory now": (
        processes(*STEADY), [*processes(*STEADY), OUT_OF_MEMORY], "outcome", "worse", 1,
    ),
    "more processes out of memory than before": (
        [*processes(*STEADY), OUT_OF_MEMORY], [*processes(*STEADY), *OUT_OF_MEMORY_TWICE],
        "outcome", "worse", 1,
    ),
    "fewer processes out of memory than before": (
        [*processes(*STEADY), *OUT_OF_MEMORY_TWICE], [*processes(*STEADY), OUT_OF_MEMORY],
        "outcome", "better", 0,
    ),
    "some processes crashed before and now": (
        [*processes(*STEADY), replace(OUT_OF_MEMORY, outcome="crashed")],
        [*processes(*STEADY), replace(OUT_OF_MEMORY, outcome="crashed")],
        "outcome", "worse", 1,
    ),
    "another GPU": (
        processes(*STEADY), processes(*STEADY, environment=ENVIRONMENT | {"device_name": "NVIDIA L4"}),
        "point", "not comparable", 2,
    ),
    "another device": (
        processes(*STEADY), processes(*STEADY, environment=ENVIRONMENT | {"device": "cpu"}),
        "point", "not comparable", 2,
    ),
    "other steps": (
        processes(*STEADY), processes(*STEADY, detail={"protocol": {"warmup_steps": 0, "steps": 10}}),
        "point", "not comparable", 2,
    ),
    "another model behind the same name": (
        processes(*STEADY, environment=ENVIRONMENT | {"inputs": {"config.json": "aaa"}}),
        processes(*STEADY, environment=ENVIRONMENT | {"inputs": {"config.json": "bbb"}}),
        "point", "not comparable", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_verdict_and_exit_code(name: str) -> None:
    baseline, run, metric, verdict, code = CASES[name]
    found = check(baseline, run)
    assert verdict_of(found, metric).verdict == verdict
    assert found.exit_code() == code
    assert found.exit_code(strict=True) == (1 if verdict in ("ambiguous", "new") else code)


@pytest.mark.parametrize("sides", [([], processes(1.0)), (processes(1.0), [])])
def test_an_empty_side_is_not_comparable(sides: tuple[list[Record], list[Record]]) -> None:
    with pytest.raises(NotComparableError, match="has no records"):
        check(*sides)


def test_of_two_lines_with_one_time_the_later_counts() -> None:
    # As a merge that keeps the lines of both sides leaves them.
    first, last = (make_record(kind="plan", metrics={"peak_allocated_bytes": n * GIB}) for n in (14, 7))
    last = replace(last, created_at=first.created_at)
    now = make_record(kind="plan", metrics={"peak_allocated_bytes": 7 * GIB})
    assert verdict_of(check([first, last], [now]), "peak_allocated_bytes").verdict == "same"
    assert verdict_of(check([last, first], [now]), "peak_allocated_bytes").verdict == "better"


def test_another_scenario_is_not_comparable() -> None:
    with pytest.raises(
        NotComparableError, match=r"no point in common \(1 and 2 points; r is 64, was 8 or 32\)"
    ):
        check([make_record(r=8), make_record(r=32)], [make_record(r=64)])


def test_a_point_that_is_gone_fails_and_a_new_one_only_when_strict() -> None:
    found = check([make_record(r=8), make_record(r=16)], [make_record(r=16), make_record(r=32)])
    assert [f.verdict for f in found.findings if f.metric == "point"] == ["new", "missing"]
    assert found.exit_code() == 1
    more = check([make_record(r=16)], [make_record(r=16), make_record(r=32)])
    assert (more.exit_code(), more.exit_code(strict=True)) == (0, 1)


def test_what_is_shown_only_does_not_fail_for_being_new() -> None:
    reserved = processes(*STEADY, metrics={"peak_reserved_bytes": 8 * GIB})
    found = check(processes(*STEADY), reserved)
    assert verdict_of(found, "peak_reserved_bytes").verdict == "new"
    assert found.exit_code(strict=True) == 0


def test_a_tolerance_that_meets_no_value_is_told() -> None:
    tolerances = dict.fromkeys(("peak_reserved_bytes", "peak_allocated_bytes", "breakdown_bytes"), NEAR)
    assert check(processes(*STEADY), processes(*STEADY), tolerances).idle_tolerances == (
        "peak_reserved_bytes",
    )


def test_what_differs_is_named_with_both_values() -> None:
    other = ENVIRONMENT | {"device_name": "NVIDIA L4", "driver": "550.1"}
    baseline = processes(*STEADY, environment=ENVIRONMENT | {"driver": "580.2"})
    reason = verdict_of(check(baseline, processes(*STEADY, environment=other)), "point").reason
    machines = ("NVIDIA A100-SXM4-80GB", "NVIDIA L4")
    assert reason == Unlike({"machine": machines, "driver": ("580.2", "550.1")})


def test_of_several_machines_in_a_baseline_the_like_one_counts() -> None:
    other = ENVIRONMENT | {"device_name": "NVIDIA L4"}
    baseline = [*processes(*STEADY), *processes(2.0, 2.0, 2.01, environment=other)]
    assert verdict_of(check(baseline, processes(*STEADY)), "step_time_s").verdict == "same"
    slow = verdict_of(check(baseline, processes(3.0, 3.0, 3.01, environment=other)), "step_time_s")
    assert slow.baseline == 2.0


def test_versions_may_differ_and_are_told() -> None:
    newer = ENVIRONMENT | {"versions": {**ENVIRONMENT["versions"], "peft": "0.30.0"}}  # type: ignore[dict-item]
    found = check([make_record()], [make_record(environment=newer)])
    assert found.exit_code() == 0
    assert found.differs == {"versions.peft": ("0.21.2", "0.30.0")}


def test_a_library_edited_in_place_is_told_though_its_version_is_the_same() -> None:
    released: Environment = {**ENVIRONMENT, "fingerprints": {"torch": None, "peft": None}}
    edited: Environment = {**ENVIRONMENT, "fingerprints": {"torch": None, "peft": "c0ffee"}}
    found = check([make_record(environment=released)], [make_record(environment=edited)])
    assert found.exit_code() == 0
    assert found.differs == {"files of peft": ("as released", "c0ffee")}
    unknown = check([make_record()], [make_record(environment=edited)])
    assert unknown.differs == {}


def test_a_plan_is_gated_without_any_machine() -> None:
    grown = make_record(metrics={"peak_allocated_bytes": 15 * GIB, "trainable_params": 39_976_960})
    found = check([make_record()], [grown])
    assert verdict_of(found, "peak_allocated_bytes").change == pytest.approx(1 / 14)
    assert found.exit_code() == 1


def test_a_planned_time_is_shown_only() -> None:
    records = [make_record(metrics={"step_time_s": time}) for time in (1.0, 2.0)]
    finding = verdict_of(check(records[:1], records[1:]), "step_time_s")
    assert (finding.verdict, finding.gated) == ("worse", False)


def test_plans_for_other_kernels_are_not_comparable() -> None:
    plans = [make_record(detail={"compute_capability": [major, 0]}) for major in (8, 9)]
    found = check(plans[:1], plans[1:])
    assert verdict_of(found, "point").reason == Unlike({"compute capability": ("8.0", "9.0")})
    assert found.exit_code() == 2


def test_a_run_of_plans_alone_says_that_measurements_were_left_out() -> None:
    found = check([make_record(), *processes(*STEADY)], [make_record()])
    assert found.left_out == {"measurement": 1}
    assert (found.exit_code(), found.exit_code(strict=True)) == (0, 1)


@pytest.mark.parametrize(
    ("metric", "tolerance", "code"),
    [
        ("peak_reserved_bytes", Tolerance(relative=0.1), 1),
        ("peak_reserved_bytes", Tolerance(relative=0.5), 0),
        ("peak_reserved_bytes", Tolerance(absolute=3 * GIB), 0),
        ("peak_reserved_bytes", NEAR, 1),
    ],
)
def test_a_tolerance_gates_what_is_only_shown(metric: str, tolerance: Tolerance, code: int) -> None:
    baseline = processes(*STEADY, metrics={"peak_reserved_bytes": 8 * GIB})
    run = processes(*STEADY, metrics={"peak_reserved_bytes": 10 * GIB})
    assert check(baseline, run, {metric: tolerance}).exit_code() == code


def test_a_tolerance_of_a_speed_is_its_minimum_effect() -> None:
    run = processes(1.1, 1.1, 1.101)
    tolerances = dict.fromkeys(("step_time_s", "tokens_per_s"), Tolerance(relative=0.2))
    assert check(processes(*STEADY), run).exit_code() == 1
    assert check(processes(*STEADY), run, tolerances).exit_code() == 0


@pytest.mark.parametrize("metric", ["step_time_s", "tokens_per_s"])
def test_a_tolerance_of_a_speed_is_one_of_its_reciprocal(metric: str) -> None:
    found = check(processes(*STEADY), processes(1.1, 1.1, 1.101), {metric: Tolerance(relative=0.2)})
    assert (found.exit_code(), found.idle_tolerances) == (0, ())


def test_a_tolerance_of_a_planned_speed_is_of_that_one_alone() -> None:
    # 5 % fewer tokens per second are 5.26 % more seconds.
    baseline = [make_record(metrics={"step_time_s": 1.0, "tokens_per_s": 1000.0})]
    run = [make_record(metrics={"step_time_s": 1 / 0.95, "tokens_per_s": 950.0})]
    assert check(baseline, run, {"tokens_per_s": Tolerance(relative=0.05)}).exit_code() == 0
    assert check(baseline, run, {"tokens_per_s": Tolerance(relative=0.04)}).exit_code() == 1


def test_a_time_of_zero_is_told_as_such() -> None:
    finding = verdict_of(check(processes(*STEADY), processes(0.0, 1.0, 1.0)), "step_time_s")
    assert (finding.verdict, finding.reason) == ("ambiguous", "not positive")


def test_a_change_at_the_least_effect_is_no_question_of_processes() -> None:
    finding = verdict_of(check(processes(*STEADY), processes(1.029, 1.030, 1.028)), "step_time_s")
    assert finding.verdict == "ambiguous"
    assert "it is about the smallest change of interest, 3 %" in reason_text(finding.reason)


def test_a_tolerance_of_the_breakdown_holds_for_each_category() -> None:
    run = processes(*STEADY, metrics={"breakdown_bytes": {"weights": 6 * GIB, "activations": 1.5 * GIB}})
    assert check(processes(*STEADY), run).exit_code() == 1
    assert check(processes(*STEADY), run, {"breakdown_bytes": Tolerance(relative=0.2)}).exit_code() == 0


def test_the_smallest_visible_change_is_told() -> None:
    seen = check(processes(1.0, 1.01, 0.99), processes(1.0, 1.01, 0.99)).smallest_visible
    assert seen is not None
    # Deviation 1 %, doubled, four degrees: 0.02 x (2/3) ** 0.5 x (4.604 + 2.132) = 11 %, e ** 0.11 - 1.
    assert seen == pytest.approx(0.1163, abs=4e-3)
    assert check(processes(1.0), processes(1.0)).smallest_visible is None


def test_an_ambiguous_speed_says_how_many_processes_would_do() -> None:
    finding = verdict_of(check(processes(1.0, 1.01, 0.99), processes(1.03, 1.04, 1.02)), "step_time_s")
    assert finding.verdict == "ambiguous"
    assert "processes per side would show 5 %" in reason_text(finding.reason)


def test_stale_measurements_of_other_code_do_not_count() -> None:
    old = [
        replace(record, created_at="2026-11-20T00:00:00+00:00", environment=ENVIRONMENT | {"code_id": "old"})
        for record in processes(5.0, 5.0, 5.0)
    ]
    new = processes(*STEADY, environment=ENVIRONMENT | {"code_id": "new"})
    assert verdict_of(check(processes(*STEADY), [*old, *new]), "step_time_s").verdict == "same"


def test_every_point_is_looked_at() -> None:
    points = [make_point(r=r) for r in (4, 8, 16)]
    records = [make_record(point=point) for point in points]
    found = check(records, records)
    assert {finding.point for finding in found.findings} == set(points)


def test_findings_are_in_the_order_of_the_run_and_then_of_what_only_the_baseline_has() -> None:
    baseline = [make_record(r=r) for r in (64, 16, 4, 8, 32)]
    run = [make_record(r=r, metrics={"peak_allocated_bytes": 20 * GIB}) for r in (8, 16, 32, 128)]
    told = [finding for finding in check(baseline, run).told if finding.metric != "trainable_params"]
    assert [finding.point.lora.r for finding in told if finding.point.lora] == [8, 16, 32, 128, 64, 4]
    assert [finding.verdict for finding in told] == ["worse"] * 3 + ["new"] + ["missing"] * 2
