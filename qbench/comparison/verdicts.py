"""One value against its baseline: same, better, worse, changed, ambiguous; a rule for each class of metric.

exact        equal, or changed
near         every process within the tolerance of every other, or beyond it; in between is ambiguous
statistical  an interval over processes: beyond zero and at least the minimum effect is a change, wholly
             within the minimum effect is none, all else is ambiguous
report       as near, but never fails
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from qbench.comparison.intervals import LEAST_PROCESSES, LogRatio, log_ratio, processes_needed
from qbench.comparison.values import MetricValues
from qbench.records.metrics import Better
from qbench.units import MIB

CheckVerdict = Literal["same", "better", "worse", "changed", "ambiguous", "new", "missing", "not comparable"]

MIN_EFFECT = 0.03
"""Share below which a change of speed is of no interest."""

WANTED_EFFECT = 0.05
"""Share for which the necessary number of processes is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a value may be from its baseline: the larger of a share of it and an absolute amount."""

    relative: float = 0.0
    absolute: float = 0.0

    def allowed(self, baseline: float) -> float:
        """Return the distance that counts as none."""
        return max(self.relative * abs(baseline), self.absolute)


NEAR = Tolerance(relative=0.01)
"""What a person would look into."""

NEAR_BYTES = Tolerance(relative=0.01, absolute=MIB)
"""Allocated memory repeats to some hundred KiB, which is more than 1 % of a small part."""


class Measured(NamedTuple):
    """The interval behind a verdict on speed, and what it would take to see more."""

    ratio: LogRatio
    pairs: int | None = None
    """Pairs of processes that were compared; None where the sides were measured apart."""
    wanted: Wanted | None = None
    """Only where the interval is ambiguous."""


class Wanted(NamedTuple):
    """How many processes per side, or pairs, would show a change."""

    effect: float
    """The change, as a share."""
    needed: int | None
    """None where no affordable number would."""
    min_effect: float
    """Share below which a change is of no interest."""
    present: int
    """How many there are now."""


class Unlike(NamedTuple):
    """Circumstances in which two results differ, so that they must not be compared."""

    values: Mapping[str, tuple[str, str]]
    """Those of the baseline and of the run, by name."""


class Failed(NamedTuple):
    """A process that did not end ok."""

    side: str
    """baseline or run."""
    error: str
    """First line of its error."""


Why = Literal[
    "processes disagree",
    "few processes",
    "few pairs",
    "between looks",
    "not positive",
    "not valid",
    "no valid baseline",
    "not in run",
]
Reason = Why | Measured | Unlike | Failed
"""Why a verdict is what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The outcome of a comparison."""

    verdict: CheckVerdict
    reason: Reason | None = None
    smallest_visible: float | None = None
    """Share that would have been seen, for statistical metrics with more than one process per side."""
    deviation: float | None = None
    """Standard deviation of the logarithm of one process, where there are enough processes to know it."""


def judge(baseline: MetricValues, run: MetricValues, tolerance: Tolerance | None) -> Judgement:
    """Return what a run's values say against the baseline's; `tolerance` replaces the rule's own."""
    if baseline.values == run.values and len(set(run.values)) == 1 and run.gate != "statistical":
        return Judgement(verdict="same")
    if isinstance(run.values[0], str) or isinstance(baseline.values[0], str):
        return _judge_exactly(baseline, run)
    if run.gate == "exact" and tolerance is None:
        return _judge_exactly(baseline, run)
    if run.gate == "statistical":
        return _judge_speed(baseline, run, MIN_EFFECT if tolerance is None else tolerance.relative)
    return _judge_nearly(baseline, run, tolerance or (NEAR_BYTES if run.unit == "bytes" else NEAR))


def _judge_exactly(baseline: MetricValues, run: MetricValues) -> Judgement:
    return Judgement(verdict="same" if set(baseline.values) == set(run.values) else "changed")


def _judge_nearly(baseline: MetricValues, run: MetricValues, tolerance: Tolerance) -> Judgement:
    before, now = _numbers(baseline), _numbers(run)
    allowed = tolerance.allowed(baseline.whole or statistics.median(before))
    lowest, highest = min(now) - max(before), max(now) - min(before)
    if -allowed <= lowest and highest <= allowed:
        return Judgement(verdict="same")
    if lowest > allowed or highest < -allowed:
        return Judgement(verdict=directed(lowest > allowed, run.better))
    return Judgement(verdict="ambiguous", reason="processes disagree")


def _judge_speed(baseline: MetricValues, run: MetricValues, min_effect: float) -> Judgement:
    before, now = _numbers(baseline), _numbers(run)
    ratio = log_ratio(before, now, (baseline.within, run.within))
    processes = min(len(before), len(now))
    if processes < LEAST_PROCESSES:
        return Judgement(verdict="ambiguous", reason="few processes")
    if ratio is None:
        return Judgement(verdict="ambiguous", reason="not positive")
    visible = ratio.smallest_visible(min_effect)
    verdict = verdict_of(ratio, min_effect, run.better)
    if verdict != "ambiguous":
        return Judgement(verdict=verdict, smallest_visible=visible, deviation=ratio.deviation)
    wanted = wanted_effect(min_effect)
    needed = processes_needed(ratio.deviation, wanted, min_effect)
    return Judgement(
        verdict="ambiguous",
        reason=Measured(ratio, wanted=Wanted(wanted, needed, min_effect, processes)),
        smallest_visible=visible,
        deviation=ratio.deviation,
    )


def verdict_of(ratio: LogRatio, min_effect: float, better: Better) -> CheckVerdict:
    """Return what an interval says: a change, none within the minimum effect (a share), or ambiguous."""
    effect = math.log1p(min_effect)
    if abs(ratio.estimate) >= effect and (ratio.low > 0 or ratio.high < 0):
        return directed(ratio.estimate > 0, better)
    return "same" if -effect <= ratio.low and ratio.high <= effect else "ambiguous"


def wanted_effect(min_effect: float) -> float:
    """Return the change, as a share, for which the necessary number of processes is reported."""
    return max(WANTED_EFFECT, 1.5 * min_effect)


def directed(grew: bool, better: Better) -> CheckVerdict:
    """Return what a number that grew or shrank became: better, worse, or changed where neither is better."""
    if better == "neither":
        return "changed"
    return "worse" if grew == (better == "lower") else "better"


def _numbers(metric: MetricValues) -> list[float]:
    return [float(value) for value in metric.values]
