"""Now against before: each point of a run held against the same point of a baseline.

Only what was made under the same circumstances is compared (see `circumstances`): versions of libraries and
of qbench may differ, since they are what a gate looks for. What else differs makes a point not comparable.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from qbench.compare.judgements import Judgement, Tolerance, Verdict, judge
from qbench.compare.methods import environment_facts
from qbench.compare.readings import Values, kind_of, reading_of, values_of
from qbench.compare.results import Result, gather
from qbench.errors import NotComparableError
from qbench.records.record import Kind, Record
from qbench.scenario.schema import Point

FAILING: tuple[Verdict, ...] = ("worse", "changed", "missing")

FAILING_STRICTLY: tuple[Verdict, ...] = (*FAILING, "ambiguous", "new")
"""What a strict check fails on: also what was not decided, and what no baseline holds."""

LATER_THAN_BASELINE = ("versions.", "qbench", "code_id", "python", "git_commit")
"""Facts of the environment that may differ; they are told, since they may be why a number moved."""


class Finding(NamedTuple):
    """One value of one point against its baseline. A tuple, since there are some twenty for each point."""

    point: Point
    kind: Kind
    device: str | None
    metric: str
    """A metric of the registry, a category of its breakdown, a fact, outcome, or 'point' for all of it."""
    verdict: Verdict
    unit: str = ""
    baseline: float | str | None = None
    run: float | str | None = None
    gated: bool = True
    """Whether a bad verdict fails the check."""
    note: str = ""
    smallest_visible: float | None = None

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
    left_out: tuple[str, ...] = ()
    """What of the baseline was not looked at, and why."""
    idle_tolerances: tuple[str, ...] = ()
    """Metrics that a tolerance was given for and that no compared point has."""

    @property
    def verdicts(self) -> Counter[Verdict]:
        """Findings that count, by verdict."""
        return Counter(finding.verdict for finding in self.findings if finding.gated)

    @property
    def smallest_visible(self) -> float | None:
        """Median over points of the smallest change of step time that would have been seen, as a share."""
        seen = [f.smallest_visible for f in self.findings if f.metric == "step_time_s" and f.smallest_visible]
        return statistics.median(seen) if seen else None

    def exit_code(self, strict: bool = False) -> int:
        """Return 1 when a point regressed, 2 when one could not be compared, else 0.

        `strict` also fails on what is ambiguous, what the baseline does not hold, and what was left out.
        """
        if any(finding.fails for finding in self.findings):
            return 1
        if self.verdicts["not comparable"]:
            return 2
        return int(strict and (bool(self.left_out) or any(f.fails_if(strict) for f in self.findings)))


def check(
    baseline: Iterable[Record], run: Iterable[Record], tolerances: Mapping[str, Tolerance] | None = None
) -> Check:
    """Return how a run compares with a baseline; `tolerances` go by metric and put any class to the test.

    Raises NotComparableError when either is empty or they have no point in common.
    """
    before, now = _by_point(gather(baseline)), _by_point(gather(run))
    for name, side in (("baseline", before), ("run", now)):
        if not side:
            raise NotComparableError(f"the {name} holds no records; run a scenario or plan into it first")
    if before.keys().isdisjoint(now):
        raise NotComparableError(
            f"the run and the baseline have no point in common ({len(now)} and {len(before)} points); "
            "give a baseline of the same scenario, or take this run with `qbench baseline accept`"
        )
    checker = _Checker(tolerances or {})
    kinds = {kind for kind, _ in now}
    for key in dict.fromkeys((*before, *now)):
        if key[0] in kinds:
            checker.compare_point(before.get(key, ()), now.get(key, ()))
    return Check(
        findings=tuple(checker.findings),
        differs=checker.differs,
        left_out=_left_out(before, kinds),
        idle_tolerances=tuple(name for name in checker.tolerances if name not in checker.used),
    )


_Key = tuple[Kind, Point]


def _by_point(results: Iterable[Result]) -> dict[_Key, list[Result]]:
    """Return the results of each point and kind, the latest first."""
    groups: dict[_Key, list[Result]] = {}
    for result in results:
        groups.setdefault((result.kind, result.point), []).append(result)
    for members in groups.values():
        members.sort(key=lambda result: result.records[-1].created_at, reverse=True)
    return groups


def _left_out(before: Iterable[_Key], kinds: set[Kind]) -> tuple[str, ...]:
    counts = Counter(kind for kind, _ in before if kind not in kinds)
    return tuple(f"{count} points of kind {kind}: the run has none" for kind, count in counts.items())


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
            self._add(before[0], "point", verdict="missing", note="the run does not have it")
            return
        if not before:
            self._add(now[0], "point", verdict="new")
            return
        met = [(result, other) for result in _newest(now) if (other := _like(result, before)) is not None]
        for result, other in met:
            self._compare(other, result)
        if not met:
            differing = _differing(before[0], now[0])
            note = "; ".join(f"{name}: {a} against {b}" for name, (a, b) in differing.items())
            self._add(now[0], "point", verdict="not comparable", note=note)

    def _compare(self, before: Result, now: Result) -> None:
        self.differs |= _later(before, now)
        ended = _judge_outcome(before.outcome, now.outcome)
        self._add(now, "outcome", baseline=before.outcome, run=now.outcome, verdict=ended)
        if not before.completed or not now.completed:
            return
        was, has = values_of(before), values_of(now)
        for name in dict.fromkeys((*was, *has)):
            self._compare_values(before, now, name, was.get(name), has.get(name))

    def _compare_values(
        self, before: Result, now: Result, name: str, was: Values | None, has: Values | None
    ) -> None:
        tolerance = self._tolerance(name) if self.tolerances else None
        unit, _, gate = kind_of(name, now.kind)
        gated = gate != "report" or tolerance is not None
        if has is not None and was == has and len(has) == 1 and gate != "statistical":
            # As most are, and some hundred thousand of them are no rarity.
            same = Finding(now.point, now.kind, now.device, name, "same", unit, has[0], has[0], gated)
            self.findings.append(same)
            return
        found = _judged(before, now, name, was, has, tolerance)
        self.findings.append(
            Finding(
                now.point,
                now.kind,
                now.device,
                name,
                found.verdict,
                unit,
                baseline=_middle(was),
                run=_middle(has),
                gated=gated,
                note=found.note,
                smallest_visible=found.smallest_visible,
            )
        )

    def _tolerance(self, metric: str) -> Tolerance | None:
        """Return the tolerance of a metric; that of the breakdown holds for each of its categories."""
        names = [name for name in (metric, metric.partition(".")[0]) if name in self.tolerances]
        self.used.update(names)
        return self.tolerances[names[0]] if names else None

    def _add(
        self,
        result: Result,
        metric: str,
        *,
        verdict: Verdict,
        baseline: str | None = None,
        run: str | None = None,
        note: str = "",
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
                note=note,
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
        return Judgement(verdict="ambiguous", note="measured, but not valid; see the report")
    if was is None and before.stores(name) and kind_of(name, before.kind)[2] != "report":
        return Judgement(
            verdict="not comparable", note="the baseline has no valid number; accept a sound one"
        )
    if was is None or has is None:
        return Judgement(verdict="new" if was is None else "missing")
    return judge(reading_of(before, name, was), reading_of(now, name, has), tolerance)


def _middle(values: Values | None) -> float | str | None:
    if values is None or len(values) == 1:
        return values[0] if values else None
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        return " | ".join(dict.fromkeys(texts))
    return statistics.median(float(value) for value in values)


def _judge_outcome(before: str, now: str) -> Verdict:
    if now not in ("ok", "oom"):
        return "worse"  # Nothing was held against anything, whatever the baseline has.
    if before == now:
        return "same"
    if now == "ok":
        return "better"
    return "worse" if before == "ok" else "changed"


def circumstances(result: Result) -> dict[str, str]:
    """Return what must be equal before numbers may be compared, by name; what is unknown is left out.

    For a plan: device, compute capability, allocator and input files. For a measurement: the machine, the
    settings of the process, how many steps were timed, and input files.
    """
    record = result.records[-1]
    env, detail = record.environment, record.detail
    facts = {"device": env.get("device"), **_named("content of", env.get("inputs"))}
    if result.kind == "plan":
        capability, allocator = detail.get("compute_capability"), detail.get("allocator")
        facts["compute capability"] = ".".join(map(str, capability)) if capability else None
        if allocator is not None:
            facts["allocator"] = ", ".join(f"{n}={v}" for n, v in allocator.items() if v) or "defaults"
        return _known(facts)
    machine = {"machine": env.get("device_name"), "driver": env.get("driver")}
    if env.get("device") == "cpu":
        machine["number of CPUs"] = env.get("cpu_count")
    settings = env.get("settings")
    if settings is not None:
        facts["settings"] = ", ".join(f"{name}={settings[name]}" for name in sorted(settings)) or "none"
    return _known(facts | machine | _named("", detail.get("protocol")))


def _named(prefix: str, values: Mapping[str, object] | None) -> dict[str, object]:
    return {f"{prefix} {name}".strip(): value for name, value in (values or {}).items()}


def _known(facts: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items() if value is not None}


def _differing(before: Result, now: Result) -> dict[str, tuple[str, str]]:
    if _seem_alike(before.records[-1], now.records[-1]):
        return {}
    ours, theirs = circumstances(before), circumstances(now)
    return {n: (ours[n], theirs[n]) for n in ours if n in theirs and ours[n] != theirs[n]}


def _seem_alike(before: Record, now: Record) -> bool:
    """Say whether all that circumstances are read from is equal, which is cheap to see."""
    names = ("compute_capability", "allocator", "protocol")
    return before.environment == now.environment and all(
        before.detail.get(name) == now.detail.get(name) for name in names
    )


def _like(result: Result, before: Iterable[Result]) -> Result | None:
    return next((other for other in before if not _differing(other, result)), None)


def _newest(results: Sequence[Result]) -> list[Result]:
    """Return the latest result of each circumstances: older ones are of other versions, and stale."""
    kept: list[Result] = []
    for result in results:
        if all(_differing(other, result) for other in kept):
            kept.append(result)
    return kept


def _later(before: Result, now: Result) -> dict[str, tuple[str, str]]:
    if before.records[-1].environment == now.records[-1].environment:
        return {}
    ours = environment_facts(before.records[-1].environment)
    theirs = environment_facts(now.records[-1].environment)
    # A baseline file keeps no commit, for one; what one side does not know is no difference.
    names = [name for name in ours if name in theirs and name.startswith(LATER_THAN_BASELINE)]
    return {name: (str(ours[name]), str(theirs[name])) for name in names if ours[name] != theirs[name]}
