"""Now against before: each point of a run compared with the same point of a baseline.

Only what was made under the same circumstances is compared (see `circumstances`): versions of libraries and
of qbench may differ, since they are what a gate looks for. What else differs makes a point not comparable.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from qbench.comparison.comparability import changed_since, differing, like, newest
from qbench.comparison.results import Result, gather, oldest_first
from qbench.comparison.values import Values, kind_of, metric_values, values_of
from qbench.comparison.verdicts import CheckVerdict, Judgement, Reason, Tolerance, Unlike, judge
from qbench.errors import NotComparableError, shown
from qbench.records.metrics import Gate
from qbench.records.record import Kind, Record
from qbench.scenario.schema import Point

_RECIPROCAL = {"step_time_s": "tokens_per_s", "tokens_per_s": "step_time_s"}
"""Speeds that are the same number in two forms."""

_SHOWN = ("peak_allocated_bytes", "peak_reserved_bytes")
"""What is shown of points that cannot be compared."""

FAILING: tuple[CheckVerdict, ...] = ("worse", "changed", "missing")

FAILING_STRICTLY: tuple[CheckVerdict, ...] = (*FAILING, "ambiguous", "new")
"""What a strict check fails on: also what was not decided, and what no baseline holds."""


class Finding(NamedTuple):
    """One value of one point against its baseline. A tuple, since there are some twenty for each point."""

    point: Point
    kind: Kind
    device: str | None
    metric: str
    """A metric of the registry, a category of its breakdown, a fact, outcome, or 'point' for all of it."""
    verdict: CheckVerdict
    unit: str = ""
    baseline: float | str | None = None
    run: float | str | None = None
    gated: bool = True
    """Whether a bad verdict fails the check."""
    reason: Reason | None = None
    smallest_visible: float | None = None
    deviation: float | None = None
    """Standard deviation of the logarithm of one process, for speeds of enough processes."""

    @property
    def change(self) -> float | None:
        """Run over baseline less one; None where either is unknown, no number, or the baseline is 0."""
        if isinstance(self.baseline, str) or isinstance(self.run, str) or self.run is None:
            return None
        return self.run / self.baseline - 1 if self.baseline else None

    @property
    def fails(self) -> bool:
        """Say whether it fails the check."""
        return self.gated and self.verdict in FAILING

    def fails_if(self, strict: bool) -> bool:
        """Say whether it fails a check that is strict or not."""
        return self.gated and self.verdict in (FAILING_STRICTLY if strict else FAILING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """All findings of a run against a baseline."""

    findings: tuple[Finding, ...]
    differs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What may differ and does: name to baseline's and run's value, of the last point that shows it."""
    left_out: Mapping[Kind, int] = field(default_factory=dict)
    """How many points of the baseline were not compared, since the run has none of their kind."""
    idle_tolerances: tuple[str, ...] = ()
    """Metrics that have a tolerance although no compared point has a value of them."""
    told: tuple[Finding, ...] = field(init=False, repr=False)
    """The findings that are not 'same', which of a large run are few."""

    def __post_init__(self) -> None:
        told = tuple([finding for finding in self.findings if finding.verdict != "same"])
        object.__setattr__(self, "told", told)

    @property
    def verdicts(self) -> Counter[CheckVerdict]:
        """Findings that count, by verdict."""
        return Counter([finding.verdict for finding in self.findings if finding.gated])

    @property
    def is_undecided(self) -> bool:
        """Whether nothing is known to be worse, and of some value not whether it is."""
        gated = [finding for finding in self.told if finding.gated]
        return not any(each.fails for each in gated) and any(each.verdict == "ambiguous" for each in gated)

    @property
    def smallest_visible(self) -> float | None:
        """Median over points of the smallest change of step time that would have been seen, as a share."""
        seen = [f.smallest_visible for f in self.findings if f.metric == "step_time_s" and f.smallest_visible]
        return statistics.median(seen) if seen else None

    def exit_code(self, strict: bool = False) -> int:
        """Return 1 when a point regressed, 2 when one could not be compared, else 0.

        `strict` also fails on what is ambiguous, what the baseline does not hold, and what was left out.
        """
        if any(finding.fails for finding in self.told):
            return 1
        if any(finding.gated and finding.verdict == "not comparable" for finding in self.told):
            return 2
        return int(strict and (bool(self.left_out) or any(f.fails_if(strict) for f in self.told)))


def check(
    baseline: Iterable[Record], run: Iterable[Record], tolerances: Mapping[str, Tolerance] | None = None
) -> Check:
    """Return how a run compares with a baseline; `tolerances` go by metric and put any class to the test.

    Findings are in the order of the run's points, then of those that only the baseline has.
    Raises NotComparableError when either is empty or they have no point in common.
    """
    was, runs = list(baseline), list(run)
    before, now = gather(was), gather(runs)
    for name, side in (("baseline", before), ("run", now)):
        if not side:
            raise NotComparableError(f"the {name} has no records; run or plan a scenario into it first")
    # In the order of the run: a baseline file is sorted by names of points that mean nothing to a person.
    pairs = _paired([*now, *before], oldest_first(before, was), oldest_first(now, runs))
    if not any(pair.before and pair.now for pair in pairs.values()):
        counts = (sum(bool(pair.now) for pair in pairs.values()), sum(bool(p.before) for p in pairs.values()))
        raise NotComparableError(
            f"the run and the baseline have no point in common ({counts[0]} and {counts[1]} points"
            f"{_settings_apart(before, now)}); give a baseline of the same scenario, or take this run with "
            "`qbench baseline accept`"
        )
    checker = _Checker(tolerances or {})
    kinds = {result.kind for result in now}
    for (kind, _), pair in pairs.items():
        if kind in kinds:
            checker.compare_point(pair.before, pair.now)
    return Check(
        findings=tuple(checker.findings),
        differs=checker.differs,
        left_out=Counter(kind for kind, _ in pairs if kind not in kinds),
        idle_tolerances=tuple(name for name in checker.tolerances if name not in checker.used),
    )


def _settings_apart(before: Iterable[Result], now: Iterable[Result]) -> str:
    """Return the settings that no point of the one side shares with one of the other, and their values."""
    sides = [[result.settings for result in results] for results in (before, now)]
    texts: list[str] = []
    for name in sides[0][0]:
        was, has = (dict.fromkeys(shown(settings.get(name)) for settings in side) for side in sides)
        if was.keys().isdisjoint(has):
            texts.append(f"; {name} is {' or '.join(has)}, was {' or '.join(was)}")
    return "".join(texts)


class _Pair(NamedTuple):
    """The results of one point and kind on both sides, the latest first."""

    before: list[Result]
    now: list[Result]


def _paired(
    order: Iterable[Result], before: Sequence[Result], now: Sequence[Result]
) -> dict[tuple[Kind, Point], _Pair]:
    """Return the results of each point, in the order of `order`; those of either side come oldest first."""
    pairs = {(result.kind, result.point): _Pair([], []) for result in order}
    for result in reversed(before):
        pairs[result.kind, result.point].before.append(result)
    for result in reversed(now):
        pairs[result.kind, result.point].now.append(result)
    return pairs


@dataclass(slots=True)
class _Checker:
    """Gathers findings point by point."""

    tolerances: Mapping[str, Tolerance]
    used: set[str] = field(default_factory=set)
    """Names of tolerances that met a value."""
    findings: list[Finding] = field(default_factory=list)
    differs: dict[str, tuple[str, str]] = field(default_factory=dict)

    def compare_point(self, before: Sequence[Result], now: Sequence[Result]) -> None:
        """Compare the results of a point, each with the latest of the baseline from like circumstances."""
        if not now:
            self._add(before[0], "point", verdict="missing", reason="not in run")
            return
        if not before:
            self._add(now[0], "point", verdict="new")
            return
        met = [(result, other) for result in newest(now) if (other := like(result, before)) is not None]
        for result, other in met:
            self._compare(other, result)
        if not met:
            self._add(now[0], "point", verdict="not comparable", reason=Unlike(differing(before[0], now[0])))
            self._show(before[0], now[0])

    def _compare(self, before: Result, now: Result) -> None:
        self.differs |= changed_since(before, now)
        ended = _judge_outcome(Counter(_outcomes(before)), Counter(_outcomes(now)))
        self._add(now, "outcome", baseline=before.outcome, run=now.outcome, verdict=ended)
        if not before.completed or not now.completed:
            return
        was, has = values_of(before), values_of(now)
        point, kind, device = now.point, now.kind, now.device
        for name in {**was, **has}:
            values = has.get(name)
            unit, _, gate = kind_of(name, kind)
            tolerance = self._tolerance(name, gate) if self.tolerances else None
            gated = gate != "report" or tolerance is not None
            if values is not None and len(values) == 1 and values == was.get(name) and gate != "statistical":
                # As most are, and some hundred thousand of them are no rarity.
                only = values[0]
                self.findings.append(Finding(point, kind, device, name, "same", unit, only, only, gated))
                continue
            found = _judged(before, now, name, was.get(name), values, tolerance)
            self.findings.append(
                Finding(
                    point,
                    kind,
                    device,
                    name,
                    found.verdict,
                    unit,
                    baseline=_middle(was.get(name)),
                    run=_middle(values),
                    gated=gated,
                    reason=found.reason,
                    smallest_visible=found.smallest_visible,
                    deviation=found.deviation,
                )
            )

    def _show(self, before: Result, now: Result) -> None:
        """Put the memory of results that cannot be compared beside each other, judged by nothing."""
        for name in _SHOWN:
            was, has = before.value(name), now.value(name)
            if was is not None and has is not None:
                unit = kind_of(name, now.kind)[0]
                found = Finding(
                    now.point, now.kind, now.device, name, "not comparable", unit, was, has, False
                )
                self.findings.append(found)

    def _tolerance(self, metric: str, gate: Gate) -> Tolerance | None:
        """Return the tolerance of a metric, the first that was given.

        That of the breakdown holds for each of its categories, and that of a speed for its reciprocal: where
        processes are compared, it is one of their ratio, and so the same for both.
        """
        wanted = [metric, metric.partition(".")[0]]
        if gate == "statistical":
            wanted.append(_RECIPROCAL[metric])
        names = [name for name in wanted if name in self.tolerances]
        self.used.update(names)
        return self.tolerances[names[0]] if names else None

    def _add(
        self,
        result: Result,
        metric: str,
        *,
        verdict: CheckVerdict,
        baseline: str | None = None,
        run: str | None = None,
        reason: Reason | None = None,
    ) -> None:
        self.findings.append(
            Finding(
                point=result.point,
                kind=result.kind,
                device=result.device,
                metric=metric,
                verdict=verdict,
                baseline=baseline,
                run=run,
                reason=reason,
            )
        )


def _judged(
    before: Result,
    now: Result,
    name: str,
    was: Values | None,
    has: Values | None,
    tolerance: Tolerance | None,
) -> Judgement:
    if has is None and now.is_void(name):
        return Judgement(verdict="ambiguous", reason="not valid")
    if was is None and before.stores(name) and kind_of(name, before.kind)[2] != "report":
        return Judgement(verdict="not comparable", reason="no valid baseline")
    if was is None or has is None:
        return Judgement(verdict="new" if was is None else "missing")
    return judge(metric_values(before, name, was), metric_values(now, name, has), tolerance)


def _middle(values: Values | None) -> float | str | None:
    if values is None or len(values) == 1:
        return values[0] if values else None
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        return " | ".join(dict.fromkeys(texts))
    return statistics.median(float(value) for value in values)


def _outcomes(result: Result) -> list[str]:
    return [record.outcome for record in result.records]


def _judge_outcome(before: Counter[str], now: Counter[str]) -> CheckVerdict:
    """Return what the outcomes of a point's processes, by number, say against those of the baseline's."""
    if not now.keys() <= {"ok", "oom"}:
        return "worse"  # Nothing was held against anything, whatever the baseline has.
    if not before.keys() <= {"ok", "oom"}:
        return "changed" if now["oom"] else "better"
    # Shares of those that ran out of memory, multiplied out, so that no rounding decides.
    was, has = before["oom"] * now.total(), now["oom"] * before.total()
    return "same" if was == has else "worse" if has > was else "better"
