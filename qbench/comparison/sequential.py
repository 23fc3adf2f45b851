"""Decide while measuring: intervals over pairs, whose repeated looks do not inflate the false-alarm rate.

A pair is one process of the baseline and one of the run that ran next to each other: A B B A or B A A B, by
lot, so that neither a drift nor a rhythm of the machine falls on one side. Each look at growing data would
add its own chance of a false alarm. Here the looks are set beforehand and share one error: half of it is
spent evenly on those before the last, the rest on the last, whenever that comes. All intervals of a run
together then hold the truth with more than CONFIDENCE, so it does not matter at which of them it ends.

Source: repeated confidence intervals, Jennison and Turnbull 1989, J. R. Statist. Soc. B 51, 305; spending
of the error, Lan and DeMets 1983, Biometrika 70, 659; added up over looks by Bonferroni's bound; interval of
a trimmed mean, Tukey and McLaughlin 1963, Sankhya A 25, 331: a burst of other work that hits one process
of eight then costs no power.
Assumes: the logarithms of pairs' ratios are independent and symmetric, about normal but for their tails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qbench.comparison.check import Check, Finding, check
from qbench.comparison.intervals import CONFIDENCE, LogRatio, mean_interval, visible
from qbench.comparison.results import number_of
from qbench.comparison.verdicts import (
    MIN_EFFECT,
    Failed,
    Judgement,
    Measured,
    Tolerance,
    Wanted,
    verdict_of,
    wanted_effect,
)
from qbench.records.metrics import METRICS
from qbench.records.record import Record
from qbench.scenario.schema import Point

FIRST_LOOK = 4
"""Pairs; with fewer, even a quiet machine has an interval that says nothing."""

MOST_PAIRS = 256
"""Of one point. A shared 2-core machine needs so many for 5 %; a GPU of one's own a handful."""

TRIMMED = 8
"""One pair of so many is left out on either end."""

_ERROR = (1 - CONFIDENCE) / 2
"""Of all looks together; the other half is left to noise that is not as assumed."""
_LAST_ERROR = _ERROR / 2
"""What the last look has at least."""

SidePair = tuple[float, float]
"""One process's number of the baseline, and one of the run."""


def looks(most: int) -> tuple[int, ...]:
    """Return after how many pairs of at most `most` one looks: 4, 6, 8, 12, 16, 24 ..., and the last."""
    steps = [FIRST_LOOK * 2**power for power in range(most.bit_length())]
    between = sorted({*steps, *(step * 3 // 2 for step in steps)})
    return (*(count for count in between if count < most), most)


def error_at(pairs: int, most: int, *, last: bool) -> float:
    """Return the chance that the interval of this look misses the truth, on either side."""
    before_last = looks(most)[:-1]
    if not before_last:
        return _ERROR
    share = (_ERROR - _LAST_ERROR) / len(before_last)
    return _ERROR - share * sum(look <= pairs for look in before_last) if last else share


def paired_ratio(pairs: Sequence[SidePair], error: float) -> LogRatio | None:
    """Return run over baseline with an interval that misses the truth by `error`.

    The TRIMMED share of pairs on either end is left out. None with one pair, or when a value is not above 0.
    """
    if len(pairs) < 2 or min(map(min, pairs)) <= 0:
        return None
    logs = [math.log(run / baseline) for baseline, run in pairs]
    return mean_interval(logs, error, cut=len(logs) // TRIMMED)


def pairs_needed(deviation: float, effect: float, min_effect: float) -> int | None:
    """Return how many pairs, an even number, would show a change of `effect` (a share); None when too many.

    `deviation` is that of the logarithm of one pair's ratio, as `paired_ratio` has it.
    """
    counts = range(FIRST_LOOK, MOST_PAIRS + 1, 2)
    return next((n for n in counts if _visible_with(n, deviation, min_effect) <= effect), None)


def _visible_with(count: int, deviation: float, min_effect: float) -> float:
    freedom = count - 2 * (count // TRIMMED) - 1
    confidence = 1 - error_at(count, count, last=True)
    return visible(deviation / math.sqrt(count), freedom, min_effect, confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """When a point is decided."""

    most: int
    """Pairs at which the last look is taken."""
    min_effect: float = MIN_EFFECT
    """Share below which a change of speed is of no interest."""

    def judge(self, pairs: Sequence[SidePair], metric: str, *, ended: bool) -> Judgement:
        """Return what pairs of a metric say at the latest look; `ended` adds the last one, at all of them."""
        taken = [look for look in looks(self.most)[:-1] if look <= len(pairs)]
        found = self._look(pairs[: taken[-1]], metric, last=False) if taken else None
        if ended and (found is None or found.verdict == "ambiguous"):
            found = self._look(pairs, metric, last=True)
        return found or Judgement(verdict="ambiguous", reason="between looks")

    def _look(self, pairs: Sequence[SidePair], metric: str, *, last: bool) -> Judgement:
        ratio = paired_ratio(pairs, error_at(len(pairs), self.most, last=last))
        if ratio is None or len(pairs) < FIRST_LOOK:
            return Judgement(verdict="ambiguous", reason="few pairs")
        verdict = verdict_of(ratio, self.min_effect, METRICS[metric].better)
        wanted = self._wanted(ratio, len(pairs)) if verdict == "ambiguous" else None
        return Judgement(
            verdict=verdict,
            reason=Measured(ratio, pairs=len(pairs), wanted=wanted),
            smallest_visible=ratio.smallest_visible(self.min_effect),
        )

    def _wanted(self, ratio: LogRatio, pairs: int) -> Wanted:
        effect = wanted_effect(self.min_effect)
        return Wanted(effect, pairs_needed(ratio.deviation, effect, self.min_effect), self.min_effect, pairs)


def pairs_of(baseline: Iterable[Record], run: Iterable[Record], metric: str) -> list[SidePair]:
    """Return the numbers of a metric, of processes with equal repeat that both have one."""
    before, now = _by_repeat(baseline, metric), _by_repeat(run, metric)
    return [(before[repeat], now[repeat]) for repeat in before if repeat in now]


def _by_repeat(records: Iterable[Record], metric: str) -> dict[Any, float]:
    numbers = {record.repeat: number_of(record, metric) for record in records if record.outcome == "ok"}
    return {repeat: number for repeat, number in numbers.items() if number is not None}


def check_pairs(
    baseline: Sequence[Record],
    run: Sequence[Record],
    rule: StoppingRule,
    *,
    ended: bool = False,
    tolerances: Mapping[str, Tolerance] | None = None,
) -> Check:
    """Return how a run compares with a baseline that was measured beside it, so far or, `ended`, for good.

    Speed is judged by the rule over pairs, all else as by `check`; raises NotComparableError as it does. A
    baseline that ended in anything but ok or oom is not comparable, since nothing was held against it.
    """
    found = check(baseline, run, tolerances)
    before, now = _by_point(baseline), _by_point(run)
    findings = []
    for finding in found.findings:
        if _is_speed(finding):
            finding = _judged_anew(finding, before[finding.point], now[finding.point], rule, ended)
        elif finding.metric == "outcome":
            finding = _with_error(finding, before[finding.point], now[finding.point])
        findings.append(finding)
    return replace(found, findings=tuple(findings))


def _by_point(records: Iterable[Record]) -> dict[Point, list[Record]]:
    groups: dict[Point, list[Record]] = {}
    for record in records:
        groups.setdefault(record.point, []).append(record)
    return groups


def _is_speed(finding: Finding) -> bool:
    row = METRICS.get(finding.metric)
    known = finding.baseline is not None and finding.run is not None
    return row is not None and row.gate == "statistical" and finding.kind == "measurement" and known


def _with_error(finding: Finding, baseline: Sequence[Record], run: Sequence[Record]) -> Finding:
    """Return the finding of an outcome with what the first process that failed said."""
    for side, records in (("baseline", baseline), ("run", run)):
        failed = next((record for record in records if record.outcome not in ("ok", "oom")), None)
        if failed is not None:
            verdict = "not comparable" if side == "baseline" else finding.verdict
            return finding._replace(verdict=verdict, reason=Failed(side, failed.error_line))
    return finding


def _judged_anew(
    finding: Finding, baseline: Sequence[Record], run: Sequence[Record], rule: StoppingRule, ended: bool
) -> Finding:
    judged = rule.judge(pairs_of(baseline, run, finding.metric), finding.metric, ended=ended)
    return finding._replace(
        verdict=judged.verdict, reason=judged.reason, smallest_visible=judged.smallest_visible
    )
