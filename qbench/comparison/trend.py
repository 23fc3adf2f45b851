"""Metrics over runs: one value a run for each point, and where the level of a series changed.

Change points are found by Apache Otava: E-divisive means, as "Hunter: Using Change Point Detection to Hunt
for Performance Regressions" (Fleming et al., 2023) describes them. They explain a history; they decide
nothing, since they see a step only when some runs are behind it.
"""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.comparison.methods import Difference, changed
from qbench.comparison.results import number_of
from qbench.comparison.verdicts import MIN_EFFECT, NEAR, CheckVerdict, directed
from qbench.errors import QbenchError
from qbench.records.metrics import METRICS
from qbench.records.record import Kind, Record
from qbench.scenario.schema import Point

DEFAULT_METRICS = ("peak_allocated_bytes", "peak_reserved_bytes", "step_time_s")

FEWEST_RUNS = 3
"""Runs below which there is no usable history."""

MOST_CHANCE = 0.001
"""Chance of seeing such a step where there is none, at which it counts as one; Otava's own default."""

WINDOW = 50
"""Runs that Otava looks at together; its own default."""


@dataclass(frozen=True, slots=True)
class RunValue:
    """What one run says."""

    run_id: str
    created_at: str
    value: float
    """Median over the run's processes."""
    software: tuple[tuple[str, str], ...]
    """Versions and code that made it, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePoint:
    """A step of the level between two runs."""

    index: int
    """Place of the first run of the new level."""
    before: float
    after: float
    """Medians of the levels on either side, to the next change points."""
    direction: CheckVerdict
    """better, worse or changed."""
    software: tuple[Difference, ...]
    """Versions and code that differ between the two runs; empty where nothing is known to."""

    @property
    def change(self) -> float | None:
        """After over before less one; None where before is 0."""
        return self.after / self.before - 1 if self.before else None


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one point on one machine, run by run."""

    point: Point
    kind: Kind
    device: str | None
    machine: str
    """Name of the device; of a plan the compute capability or, where a number is of speed, the card."""
    metric: str
    unit: str
    runs: tuple[RunValue, ...]
    """In order of time."""
    changes: tuple[ChangePoint, ...]


def trend(
    records: Iterable[Record],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    find_changes: bool = True,
) -> list[Series]:
    """Return the history of each point and metric that at least FEWEST_RUNS runs have a value of.

    A change point is at least as large as what `qbench check` minds. Raises QbenchError when changes are to
    be found and Apache Otava is not installed.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Record]]] = {}
    for record, metric in itertools.product(records, metrics):
        if record.outcome == "ok":
            group = (record.point, record.kind, record.device, _machine(record, metric), metric)
            groups.setdefault(group, {}).setdefault(record.run_id, []).append(record)
    found = []
    for (point, kind, device, machine, metric), by_run in groups.items():
        runs = _run_values(by_run, metric)
        if len(runs) >= FEWEST_RUNS:
            changes = _changes(metric, runs) if find_changes else ()
            unit = METRICS[metric].unit
            found.append(Series(point, kind, device, machine, metric, unit, runs, changes))
    return found


def _machine(record: Record, metric: str) -> str:
    if record.kind != "plan":
        return str(record.device_name)
    card, capability = record.metrics_fit, record.compute_capability
    if METRICS[metric].gate == "statistical" and card is not None:
        return card.gpu
    return f"compute capability {'.'.join(map(str, capability))}" if capability else ""


def _run_values(by_run: dict[str, list[Record]], metric: str) -> tuple[RunValue, ...]:
    found = []
    for run_id, records in by_run.items():
        values = [value for record in records if (value := number_of(record, metric)) is not None]
        if values:
            first = min(records, key=lambda record: record.created_at)
            found.append(RunValue(run_id, first.created_at, statistics.median(values), _software(first)))
    return tuple(sorted(found, key=lambda run: (run.created_at, run.run_id)))


def _software(record: Record) -> tuple[tuple[str, str], ...]:
    known = {**record.versions, "qbench": record.qbench_version, "code": record.code_id}
    return tuple((name, str(value)) for name, value in known.items() if value is not None)


def _changes(metric: str, runs: Sequence[RunValue]) -> tuple[ChangePoint, ...]:
    row = METRICS[metric]
    least = MIN_EFFECT if row.gate == "statistical" else NEAR.relative
    places = _steps([run.value for run in runs], least)
    edges = [0, *places, len(runs)]
    levels = [
        statistics.median(run.value for run in runs[start:end]) for start, end in itertools.pairwise(edges)
    ]
    return tuple(
        ChangePoint(
            index=index,
            before=before,
            after=after,
            direction=directed(after > before, row.better),
            software=_moved(runs[index - 1], runs[index]),
        )
        for index, before, after in zip(places, levels, levels[1:], strict=False)
    )


def _steps(values: list[float], least: float) -> list[int]:
    """Return the index of the first value of each new level, by Apache Otava."""
    try:
        from otava.analysis import compute_change_points
    except ImportError as error:
        raise QbenchError(
            f"change points need Apache Otava ({error}); pip install 'qbench[trend]'"
        ) from error
    with warnings.catch_warnings():
        # Planned numbers do not vary at all, and its t-test divides by their deviation: infinitely sure.
        warnings.simplefilter("ignore", RuntimeWarning)
        found, _ = compute_change_points(
            values, window_len=WINDOW, max_pvalue=MOST_CHANCE, min_magnitude=least
        )
    return [int(point.index) for point in found]


def _moved(before: RunValue, after: RunValue) -> tuple[Difference, ...]:
    return tuple(changed(dict(before.software), dict(after.software)))
