from __future__ import annotations

from typing import Any

import pytest

from qbench.records.metrics import BREAKDOWN, METRICS, SCALARS, scalar
from qbench.records.parts import Metrics
from qbench.records.record import Record
from qbench.records.shape import shape_problem
from qbench.scenario.schema import Point


def record(**metrics: Any) -> Record:
    return Record(run_id="r", point=Point(model="m"), kind="measurement", outcome="ok", metrics=metrics)


@pytest.mark.parametrize(
    ("stored", "number"),
    [
        ([3.0, 1.0, 2.0], 2.0),
        ([1.0, 4.0], 2.5),
        ([5.0, None, 1.0], 3.0),  # a loss that was not a number is stored as null
        ([], None),
        ([None], None),
        (0.25, 0.25),
        (None, None),
    ],
)
def test_scalar_is_the_median_of_raw_values(stored: object, number: float | None) -> None:
    assert scalar(record(step_time_s=stored), "step_time_s") == number


def test_the_type_of_stored_metrics_has_the_metrics_of_the_registry() -> None:
    assert list(Metrics.__annotations__) == list(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_a_count_of_anything_is_a_whole_number(name: str) -> None:
    problem = shape_problem(record(**{name: 1.5}).to_dict())
    assert (problem is None) == (METRICS[name].unit not in ("bytes", "count", "") or name == "weight_error")


def test_an_absent_metric_is_unknown() -> None:
    assert scalar(record(), "loss") is None


@pytest.mark.parametrize("name", ["breakdown_bytes", "peak_at", "no_such_metric"])
def test_what_is_not_one_number_is_refused(name: str) -> None:
    with pytest.raises(KeyError, match="is not one number"):
        scalar(record(), name)


def test_every_metric_is_described_and_every_name_says_its_unit() -> None:
    assert set(METRICS) - set(SCALARS) == {"breakdown_bytes", "peak_at"}
    assert len(set(BREAKDOWN)) == len(BREAKDOWN) == 12
    for metric in METRICS.values():
        assert metric.description.endswith(".")
        assert (metric.unit == "bytes") == metric.name.endswith("_bytes")
