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
from dataclasses import dataclass
from typing import Literal

from qbench.comparison.intervals import LEAST_PROCESSES, LogRatio, log_ratio, processes_needed
from qbench.comparison.values import Reading
from qbench.records.metrics import Better
from qbench.units import MIB

Verdict = Literal["same", "better", "worse", "changed", "ambiguous", "new", "missing", "not comparable"]

MIN_EFFECT = 0.03
"""Share below which a change of speed is of no interest."""

WANTED_EFFECT = 0.05
"""Share that a person is told the number of processes for."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a comparison says."""

    verdict: Verdict
    note: str = ""
    smallest_visible: float | None = None
    """Share that would have been seen, for statistical metrics with more than one process a side."""
    deviation: float | None = None
    """Standard deviation of the logarithm of one process, where there are enough processes to know it."""


def judge(baseline: Reading, run: Reading, tolerance: Tolerance | None) -> Judgement:
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


def _judge_exactly(baseline: Reading, run: Reading) -> Judgement:
    return Judgement(verdict="same" if set(baseline.values) == set(run.values) else "changed")


def _judge_nearly(baseline: Reading, run: Reading, tolerance: Tolerance) -> Judgement:
    before, now = _numbers(baseline), _numbers(run)
    allowed = tolerance.allowed(baseline.whole or statistics.median(before))
    lowest, highest = min(now) - max(before), max(now) - min(before)
    if -allowed <= lowest and highest <= allowed:
        return Judgement(verdict="same")
    if lowest > allowed or highest < -allowed:
        return Judgement(verdict=_directed(lowest > allowed, run.better))
    return Judgement(verdict="ambiguous", note="the processes differ by more than the tolerance")


def _judge_speed(baseline: Reading, run: Reading, min_effect: float) -> Judgement:
    before, now = _numbers(baseline), _numbers(run)
    ratio = log_ratio(before, now, max(baseline.within, run.within))
    processes = min(len(before), len(now))
    if processes < LEAST_PROCESSES:
        note = (
            f"fewer than {LEAST_PROCESSES} processes a side show no noise; measure {LEAST_PROCESSES} or more"
        )
        return Judgement(verdict="ambiguous", note=note)
    if ratio is None:
        return Judgement(verdict="ambiguous", note="a value that is not above 0 has no ratio; measure again")
    visible = ratio.smallest_visible(min_effect)
    verdict = verdict_of(ratio, min_effect, run.better)
    if verdict != "ambiguous":
        return Judgement(verdict=verdict, smallest_visible=visible, deviation=ratio.deviation)
    wanted = wanted_effect(min_effect)
    needed = processes_needed(ratio.deviation, wanted, min_effect)
    if needed is not None and needed <= processes:
        hint = f"it lies at the least change of interest, {100 * min_effect:g} %"
    else:
        count = f"{needed} processes" if needed else "no affordable number of processes"
        hint = f"{count} a side would show {100 * wanted:g} %"
    return Judgement(
        verdict="ambiguous",
        note=f"{range_text(ratio)}; {hint}",
        smallest_visible=visible,
        deviation=ratio.deviation,
    )


def verdict_of(ratio: LogRatio, min_effect: float, better: Better) -> Verdict:
    """Return what an interval says: a change, none within the minimum effect (a share), or ambiguous."""
    effect = math.log1p(min_effect)
    if abs(ratio.estimate) >= effect and (ratio.low > 0 or ratio.high < 0):
        return _directed(ratio.estimate > 0, better)
    return "same" if -effect <= ratio.low and ratio.high <= effect else "ambiguous"


def wanted_effect(min_effect: float) -> float:
    """Return the change, as a share, that a person is told the number of processes for."""
    return max(WANTED_EFFECT, 1.5 * min_effect)


def range_text(ratio: LogRatio) -> str:
    """Return an interval in percent: '-1.2 to +6.1 %'."""
    return f"{100 * math.expm1(ratio.low):+.1f} to {100 * math.expm1(ratio.high):+.1f} %"


def _directed(grew: bool, better: Better) -> Verdict:
    if better == "neither":
        return "changed"
    return "worse" if grew == (better == "lower") else "better"


def _numbers(reading: Reading) -> list[float]:
    return [float(value) for value in reading.values]
