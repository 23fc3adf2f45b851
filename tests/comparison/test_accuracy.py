"""Errors of plans: their sign, their median and the worst of them."""

from __future__ import annotations

import pytest

from qbench.comparison.accuracy import Accuracy, FigureComparison, summarize


def comparison(
    measured: int, planned: int, group: str = "lab", figure: str = "max_allocated"
) -> FigureComparison:
    texts = dict.fromkeys(("id", "run", "gpu", "stack", "conditions", "source"), "x")
    return FigureComparison(
        group=group, figure=figure, unit="bytes", measured=measured, planned=planned, **texts
    )


@pytest.mark.parametrize(("measured", "planned", "percent"), [(200, 199, -0.5), (200, 203, 1.5), (7, 7, 0)])
def test_error_is_plan_less_measurement(measured: int, planned: int, percent: float) -> None:
    found = comparison(measured, planned)
    assert found.error_percent == percent
    assert found.to_dict()["error_percent"] == percent
    assert found.to_dict()["measured"] == measured


def test_summary_takes_the_median_of_absolute_errors_and_the_worst_with_its_sign() -> None:
    errors = [comparison(100, planned) for planned in (99, 100, 102, 95)]
    others = [comparison(100, 101, figure="max_reserved"), comparison(100, 101, group="other")]
    assert summarize([*errors, *others]) == [
        # |errors| are 0, 1, 2 and 5.
        Accuracy(group="lab", figure="max_allocated", count=4, median_percent=1.5, worst_percent=-5),
        Accuracy(group="lab", figure="max_reserved", count=1, median_percent=1, worst_percent=1),
        Accuracy(group="other", figure="max_allocated", count=1, median_percent=1, worst_percent=1),
    ]
