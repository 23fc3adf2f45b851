"""All records of one point under one engine and machine, read as one result."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbench.records.facts import FileDigests, Machine, machine_of, named_content
from qbench.records.fits import Fit
from qbench.records.metrics import METRICS, SCALARS, scalar
from qbench.records.parts import ValidityFinding
from qbench.records.record import Kind, Record
from qbench.scenario.schema import Point
from qbench.scenario.settings import point_settings

MEMORY_METRICS = tuple(name for name in SCALARS if METRICS[name].unit == "bytes")
"""Names of the metrics that are one number of bytes."""

_DOUBT_SPEED = (
    *("warmup_steady", "other_cpus_busy", "load_average_before", "foreign_processes", "throttling"),
    "throttled_",
)
"""Beginnings of the names of findings that doubt a measured speed (`measure.validity`)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """One planned point (its latest plan), or one measured point (all its processes on one machine)."""

    point: Point
    """The training step that the records speak of."""
    kind: Kind
    """plan or measurement."""
    device: str | None
    """cpu or cuda; null for a measurement on a null GPU."""
    machine: Machine
    """Fingerprint of a measurement's environment; of a plan, which no machine can change, no more than the
    card that it is for where it stands beside a null GPU."""
    records: tuple[Record, ...]
    """At least one record; several are the processes of one measurement."""
    _values: dict[str, float | None] = field(default_factory=dict, repr=False)
    """Medians that were asked for before: a report asks for each some dozen times."""
    _settings: dict[str, Any] = field(default_factory=dict, repr=False)

    completed: tuple[Record, ...] = field(init=False, repr=False)
    """The records that ended ok."""

    def __post_init__(self) -> None:
        completed = tuple(record for record in self.records if record.outcome == "ok")
        object.__setattr__(self, "completed", completed)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the point under their short names; those of an absent adapter are None."""
        if not self._settings:
            self._settings.update(point_settings(self.point))
        return self._settings

    @property
    def outcome(self) -> str:
        """How the records ended: 'ok', 'oom', or '2 ok, 1 timeout' where processes ended differently."""
        outcomes = [record.outcome for record in self.records]
        if len(set(outcomes)) == 1:
            return outcomes[0]
        counts = Counter(outcomes)
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())

    @property
    def failed(self) -> bool:
        """Say whether all records ended in an error; out of memory is not an error but a result."""
        return all(record.outcome == "error" for record in self.records)

    def value(self, metric: str) -> float | None:
        """Return the median over processes of each process's own number; None when none has a valid one."""
        if metric not in self._values:
            values = [number_of(record, metric) for record in self.completed]
            known = [value for value in values if value is not None]
            self._values[metric] = statistics.median(known) if known else None
        return self._values[metric]

    def is_void(self, metric: str) -> bool:
        """Say whether a process has a number for a metric that must not be used."""
        return any(metric in voided(record) for record in self.completed)

    @property
    def speed_doubts(self) -> tuple[str, ...]:
        """What speaks against a measured speed that is valid, in the words of the findings, each once."""
        found = (finding for record in self.completed for finding in record.validity)
        doubts = (each["why"] for each in found if each["verdict"] == "warn" and _doubts_speed(each))
        return tuple(dict.fromkeys(doubts))

    def stores(self, metric: str) -> bool:
        """Say whether a process has something stored for a metric, even if it is not a number."""
        return any(metric in record.metrics for record in self.completed)

    @property
    def breakdown(self) -> dict[str, int]:
        """Bytes by category at the peak, of the last record that has them; empty when unknown."""
        for record in reversed(self.completed):
            if record.breakdown_bytes:
                return dict(record.breakdown_bytes)
        return {}

    @property
    def latest(self) -> Record:
        """The last record that ended ok, or the last one where none did."""
        return (self.completed or self.records)[-1]

    @property
    def fits(self) -> tuple[Fit, ...]:
        """The cards that a plan was checked against; none for a measurement."""
        return self.latest.fits


def _doubts_speed(finding: ValidityFinding) -> bool:
    # Who else is on a card of a container is never known; that alone says nothing of the speed.
    return finding["name"].startswith(_DOUBT_SPEED) and finding["value"] is not None


def caveats(results: Iterable[Result]) -> dict[str, int]:
    """Return each caveat once, with the number of points that carry it."""
    points: dict[str, set[Point]] = {}
    for result in results:
        for record in result.records:
            for caveat in record.caveats:
                points.setdefault(str(caveat), set()).add(result.point)
    return {caveat: len(members) for caveat, members in points.items()}


def voided(record: Record) -> set[str]:
    """Return the metrics of a measurement whose numbers must not be used, by its own findings."""
    return {name for finding in record.validity for name in finding.get("voids") or ()}


def number_of(record: Record, metric: str) -> float | None:
    """Return one number of one process: `scalar`, or tokens per second by its step times; None when void."""
    return None if metric in voided(record) else stored_number(record, metric)


def stored_number(record: Record, metric: str) -> float | None:
    """Return what `number_of` does, valid or not."""
    value = scalar(record, metric)
    if value is None and metric == "tokens_per_s":
        # Raw times are what a measurement stores; the rate follows from them.
        seconds = scalar(record, "step_time_s")
        return record.point.tokens_per_step / seconds if seconds else None
    return value


def varying_settings(results: Iterable[Result]) -> list[str]:
    """Return the names of the settings, model and precision aside, that differ among the results."""
    seen: dict[str, set[Any]] = {}
    for result in results:
        for name, value in result.settings.items():
            seen.setdefault(name, set()).add(value)
    return [name for name, values in seen.items() if len(values) > 1 and name not in ("model", "precision")]


def gather(records: Iterable[Record]) -> list[Result]:
    """Return one result for each point, kind, device and machine, in order of first appearance.

    Results of files of one name and other content, such as a/m.gguf and b/m.gguf, stay apart.
    Of several plans of a point the last counts; of several measurements by the same process of the same
    run (one that was run again) the last counts. Clocks are set back, so that times say nothing of the order.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = (record.kind, record.device, machine_of(record), record.point, named_content(record))
        groups.setdefault(key, []).append(record)
    return [
        Result(
            point=point,
            kind=kind,
            device=device,
            machine=machine,
            records=_latest(kind, members),
        )
        for (kind, device, machine, point, _), members in groups.items()
    ]


def oldest_first(results: Iterable[Result], records: Sequence[Record]) -> list[Result]:
    """Return the results of `gather` by the place of their last record among the records."""
    places = {id(record): place for place, record in enumerate(records)}
    return sorted(results, key=lambda result: max(places[id(record)] for record in result.records))


def _latest(kind: Kind, records: list[Record]) -> tuple[Record, ...]:
    if kind == "plan":
        return (records[-1],)
    # What other code measured is stale, and a process that was run again replaces the one before.
    code = records[-1].code_id
    by_process: dict[Any, Record] = {}
    for order, record in enumerate(records):
        if record.code_id == code:
            repeat = record.repeat
            by_process[("unnumbered", order) if repeat is None else repeat] = record
    return tuple(by_process.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A plan beside a measurement of the same point on the same device."""

    plan: Result
    measured: Result

    def error_percent(self, metric: str) -> float | None:
        """Return how far the plan is from the measurement, in percent of the measurement."""
        planned, measured = self.plan.value(metric), self.measured.value(metric)
        if planned is None or not measured:
            return None
        return 100 * (planned - measured) / measured


def predictions(results: Iterable[Result]) -> list[Prediction]:
    """Return each measured result that has a plan for the same point and device, with that plan.

    A null GPU is compared with the plan for its card.
    """
    results = list(results)
    plans = {planned_for(result): result for result in results if result.kind == "plan"}
    return [
        Prediction(plan=plans[planned_for(result)], measured=result)
        for result in results
        if result.kind == "measurement" and planned_for(result) in plans
    ]


def planned_for(result: Result) -> tuple[str | None, str | None, Point, FileDigests]:
    """Return kernels, card, point and files of a plan, or of the plan that a measurement is compared with."""
    device = "cuda" if result.device == "null" else result.device
    return device, result.records[-1].card, result.point, named_content(result.records[-1])
