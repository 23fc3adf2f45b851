"""Two software environments on the same points: which packages differ, and what that did to the numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.comparison.intervals import mean_interval
from qbench.comparison.methods import Difference, changed
from qbench.comparison.results import MEMORY_METRICS
from qbench.records.metrics import BREAKDOWN, scalar
from qbench.records.record import Record
from qbench.scenario.schema import Point

EXACT_METRICS = (
    "trainable_params",
    "total_params",
    *(name for name in MEMORY_METRICS if name != "device_bytes"),
)
"""Metrics that the same software gives again to the byte; device_bytes is sampled and is not among them."""

OF_A_STEP = frozenset(
    ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "triton", "flash-attn", "xformers")
)
"""Packages whose code a training step may execute."""

CONFIDENCE = 0.95
MIN_PAIRS = 3
"""Two pairs that happen to agree would give an interval that is far too narrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactChange:
    """A count or a number of bytes, once for each process of either environment."""

    metric: str
    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def equal(self) -> bool:
        """Whether every process of both environments gave the same number."""
        return len({*self.a, *self.b}) == 1

    @property
    def steady(self) -> bool:
        """Whether the processes of one environment agree; where they do not, a difference may be chance."""
        return len(set(self.a)) == len(set(self.b)) == 1

    @property
    def difference(self) -> float:
        """Median of b less median of a, in the unit of the metric."""
        return statistics.median(self.b) - statistics.median(self.a)

    @property
    def percent(self) -> float | None:
        """The difference in percent of a; None where a is 0."""
        base = statistics.median(self.a)
        return 100 * self.difference / base if base else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeChange:
    """Step time of b against a, over pairs of processes that ran next to each other."""

    a: tuple[float, ...]
    """Median step time of each process, in seconds."""
    b: tuple[float, ...]
    ratio: float
    """Geometric mean of the pairs' b / a; below 1 when b is faster."""
    interval: tuple[float, float] | None
    """95 % interval of the ratio (`ratio_interval`); None with fewer than MIN_PAIRS."""

    @property
    def resolved(self) -> bool | None:
        """Whether the interval leaves out 1, so that the pairs agree on which is faster; None without one."""
        return None if self.interval is None else not self.interval[0] <= 1 <= self.interval[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointChange:
    """One point in both environments."""

    point: Point
    a: tuple[Record, ...]
    b: tuple[Record, ...]
    exact: tuple[ExactChange, ...]
    breakdown: dict[str, int]
    """Bytes by category at the peak, b less a, where they differ; empty where either side has none."""
    time: TimeChange | None

    @property
    def completed(self) -> bool:
        """Whether each environment has a number to compare."""
        return bool(_completed(self.a) and _completed(self.b))


def package_changes(a: Mapping[str, str], b: Mapping[str, str]) -> list[Difference]:
    """Return the packages whose versions differ, those of a training step first, each kind by name.

    None stands for the version of one that is not installed.
    """
    return sorted(changed(a, b), key=lambda package: (package.name not in OF_A_STEP, package.name))


def compare_environments(a: Iterable[Record], b: Iterable[Record]) -> list[PointChange]:
    """Return what became of each point that either side has records of, in order of first appearance."""
    by_point: dict[Point, tuple[list[Record], list[Record]]] = {}
    for side, records in enumerate((a, b)):
        for record in records:
            by_point.setdefault(record.point, ([], []))[side].append(record)
    return [_point_change(point, *sides) for point, sides in by_point.items()]


def _point_change(point: Point, a: Sequence[Record], b: Sequence[Record]) -> PointChange:
    done_a, done_b = _completed(a), _completed(b)
    exact = (
        ExactChange(metric=name, a=values_a, b=values_b)
        for name in EXACT_METRICS
        if (values_a := _values(done_a, name)) and (values_b := _values(done_b, name))
    )
    return PointChange(
        point=point,
        a=tuple(a),
        b=tuple(b),
        exact=tuple(exact),
        breakdown=_breakdown_difference(done_a, done_b),
        time=_time_change(done_a, done_b),
    )


def _completed(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.outcome == "ok"]


def _values(records: Iterable[Record], metric: str) -> tuple[float, ...]:
    known = (scalar(record, metric) for record in records)
    return tuple(value for value in known if value is not None)


def _breakdown_difference(a: Sequence[Record], b: Sequence[Record]) -> dict[str, int]:
    """Return the difference of the last breakdowns."""
    sides = [record[-1].breakdown_bytes if record else None for record in (a, b)]
    if not all(sides):
        return {}
    differences = {name: _bytes(sides[1], name) - _bytes(sides[0], name) for name in BREAKDOWN}
    return {name: difference for name, difference in differences.items() if difference}


def _bytes(breakdown: Any, name: str) -> int:
    return int(breakdown.get(name) or 0)


def _time_change(a: Iterable[Record], b: Iterable[Record]) -> TimeChange | None:
    times_a, times_b = _times(a), _times(b)
    paired = [repeat for repeat in times_a if repeat in times_b]
    if not paired:
        return None
    ratio, interval = ratio_interval([times_b[repeat] / times_a[repeat] for repeat in paired])
    return TimeChange(a=tuple(times_a.values()), b=tuple(times_b.values()), ratio=ratio, interval=interval)


def _times(records: Iterable[Record]) -> dict[Any, float]:
    """Return the median step time of each process by its number."""
    times = {record.repeat: scalar(record, "step_time_s") for record in records}
    return {repeat: seconds for repeat, seconds in times.items() if seconds}


def ratio_interval(ratios: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the geometric mean of some ratios and its 95 % interval, None of fewer than MIN_PAIRS.

    Assumes: the logarithms of the ratios are independent and about normal.
    """
    logs = [math.log(ratio) for ratio in ratios]
    if len(logs) < MIN_PAIRS:
        return math.exp(statistics.fmean(logs)), None
    found = mean_interval(logs, 1 - CONFIDENCE)
    return math.exp(found.estimate), (math.exp(found.low), math.exp(found.high))
