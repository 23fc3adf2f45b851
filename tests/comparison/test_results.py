from __future__ import annotations

import pytest

from qbench.comparison.results import gather, predictions, varying_settings
from tests.comparison.hand_made import ENVIRONMENT, finding, make_point, make_record


def measured(**changes):
    return make_record(kind="measurement", **changes)


def test_processes_of_a_point_on_one_machine_are_one_result():
    records = [measured(detail={"repeat": repeat}) for repeat in range(3)]
    (result,) = gather(records)
    assert len(result.records) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "nf4"},
        {"kind": "plan"},
        {"environment": ENVIRONMENT | {"device": "cpu"}},
        {"environment": ENVIRONMENT | {"device_name": "NVIDIA L4"}},
        {"environment": ENVIRONMENT | {"versions": ENVIRONMENT["versions"] | {"torch": "2.12.0"}}},
    ],
)
def test_what_separates_results(change):
    assert len(gather([measured(), make_record(**({"kind": "measurement"} | change))])) == 2


@pytest.mark.parametrize(("kind", "file"), [("plan", "gguf"), ("measurement", "data")])
def test_files_of_one_name_and_other_content_are_two_results(kind, file):
    # a/m.gguf and b/m.gguf, or en/t.txt and fr/t.txt, are one point in records.
    first, second = (
        make_record(kind=kind, environment=ENVIRONMENT | {"inputs": {file: digest}})
        for digest in ("aaaaaaaaaaaa", "bbbbbbbbbbbb")
    )
    assert [result.records for result in gather([first, second, first])] == [
        (first,) if kind == "plan" else (first, first),
        (second,),
    ]


def test_a_measurement_is_held_against_the_plan_of_the_same_files():
    plans, truths = (
        [
            make_record(kind=kind, environment=ENVIRONMENT | {"inputs": {"gguf": digest}})
            for digest in ("aaaaaaaaaaaa", "bbbbbbbbbbbb")
        ]
        for kind in ("plan", "measurement")
    )
    met = [(found.plan.records, found.measured.records) for found in predictions(gather([*plans, *truths]))]
    assert met == [((plan,), (truth,)) for plan, truth in zip(plans, truths, strict=True)]


def test_a_plan_that_knows_its_config_is_met_by_a_measurement_that_does_not():
    plan = make_record(environment=ENVIRONMENT | {"inputs": {"config.json": "aaaaaaaaaaaa"}})
    assert len(predictions(gather([plan, measured()]))) == 1


SET_BACK = "2026-11-01T00:00:00+00:00"
"""When the clock was set back, and what came later says that it was made earlier."""


def test_plans_of_a_point_are_one_result_on_all_machines_and_the_last_counts():
    old = make_record(metrics={"peak_allocated_bytes": 1})
    new = make_record(
        metrics={"peak_allocated_bytes": 2}, environment=ENVIRONMENT | {"versions": {}}, created_at=SET_BACK
    )
    (result,) = gather([old, new])
    assert result.value("peak_allocated_bytes") == 2


def test_a_process_that_was_run_again_counts_once():
    failed = measured(detail={"repeat": 0}, outcome="crashed")
    (result,) = gather([failed, measured(detail={"repeat": 0}, created_at=SET_BACK)])
    assert result.outcome == "ok"


def test_value_is_the_median_over_processes_of_the_median_of_each():
    # Medians of the processes: 2, 20, 4; their median is 4. The median of all nine times would be 3.
    times = [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [2.0, 4.0, 1000.0]]
    records = [measured(detail={"repeat": i}, metrics={"step_time_s": t}) for i, t in enumerate(times)]
    (result,) = gather(records)
    assert result.value("step_time_s") == 4.0


def test_throughput_follows_from_raw_times():
    (result,) = gather([measured(metrics={"step_time_s": [0.5, 0.5, 9.0]}, seq_len=1024)])
    assert result.value("tokens_per_s") == 2048  # 1 sequence x 1024 tokens / 0.5 s


def test_failed_processes_are_counted_but_give_no_values():
    records = [
        measured(detail={"repeat": 0}, metrics={"peak_allocated_bytes": 10}),
        measured(detail={"repeat": 1}, metrics={"peak_allocated_bytes": 30}, outcome="oom"),
        measured(detail={"repeat": 2}, metrics={"peak_allocated_bytes": 20}),
    ]
    (result,) = gather(records)
    assert result.outcome == "2 ok, 1 oom"
    assert result.value("peak_allocated_bytes") == 15


def test_an_unknown_value_is_none():
    (result,) = gather([make_record(metrics={})])
    assert result.value("peak_allocated_bytes") is None
    assert result.value("tokens_per_s") is None


def test_a_plan_meets_the_measurement_of_its_point_and_device_only():
    plan = make_record(metrics={"peak_allocated_bytes": 101})
    other_device = make_record(environment=ENVIRONMENT | {"device": "cpu"})
    truth = measured(metrics={"peak_allocated_bytes": 100})
    (found,) = predictions(gather([plan, other_device, truth, measured(r=64)]))
    assert found.error_percent("peak_allocated_bytes") == pytest.approx(1.0)  # (101 - 100) / 100
    assert found.error_percent("peak_reserved_bytes") is None


def test_varying_settings_leave_out_model_and_precision():
    points = [
        make_point(),
        make_point(precision="nf4", r=8),
        make_point(model="b", seq_len=128),
        make_point(target_modules=("q_proj",)),
    ]
    results = gather([make_record(point=point) for point in points])
    assert varying_settings(results) == ["r", "target_modules", "seq_len"]


def test_a_speed_that_is_not_valid_is_no_value():
    times = {"peak_allocated_bytes": 7, "step_time_s": [2.0]}
    void = {"validity": [finding("allocator_retries", "invalid", 3), finding("git_dirty", "warn", True)]}
    records = [
        measured(detail={"repeat": 0, **void}, metrics=times),
        measured(detail={"repeat": 1}, metrics=times | {"step_time_s": [5.0]}),
    ]
    (result,) = gather(records)
    assert result.value("step_time_s") == 5.0
    assert result.value("tokens_per_s") == 2048 / 5
    assert result.value("peak_allocated_bytes") == 7
    assert result.is_void("step_time_s")
    assert not result.is_void("peak_allocated_bytes")
    (alone,) = gather(records[:1])
    assert alone.value("step_time_s") is None
    assert alone.value("tokens_per_s") is None
    assert alone.value("peak_allocated_bytes") == 7


def test_a_warning_voids_nothing():
    (result,) = gather(
        [measured(detail={"validity": [finding("x", "warn")]}, metrics={"step_time_s": [2.0]})]
    )
    assert result.value("step_time_s") == 2.0
    assert not result.is_void("step_time_s")
