"""What a result says, as named values that can be held against a baseline: one value a process."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.compare.results import Result, number_of
from qbench.records.metrics import FACTS, METRICS, SCALARS, Better, Gate, scalar
from qbench.records.record import Record

NORMAL_QUARTILES = 1.349
"""Distance of the quartiles of a normal distribution, in its deviations."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric, fact or category of a result."""

    name: str
    unit: str
    better: Better
    gate: Gate
    values: tuple[float, ...] | tuple[str, ...]
    """One for each process that has it; texts for what is no number."""
    whole: float | None = None
    """What a relative tolerance is taken of, where it is not the value itself: the peak, for its parts."""
    within: float = 0.0
    """Deviation of the logarithm of a process's raw values, median over processes; 0 where it is unknown."""


def readings_of(result: Result) -> dict[str, Reading]:
    """Return every known value of the processes that ended ok, by name."""
    completed = result.completed
    found = [*_metrics(completed), *_breakdown(completed), *_facts(completed)]
    return {reading.name: reading for reading in found if reading.values}


def _metrics(completed: Sequence[Record]) -> Iterator[Reading]:
    for name in SCALARS:
        # Tokens per second follow from step times where they are not stored.
        if name != "tokens_per_s" and not any(name in record.metrics for record in completed):
            continue
        row = METRICS[name]
        # A planned time is one figure of a catalog's card: nothing was timed that could have slowed down.
        planned = row.gate == "statistical" and completed[0].kind == "plan"
        values = [number_of(record, name) for record in completed]
        known = tuple(value for value in values if value is not None and math.isfinite(value))
        within = _within(completed, name) if row.gate == "statistical" else 0.0
        yield Reading(name, row.unit, row.better, "report" if planned else row.gate, known, within=within)


def _within(completed: Sequence[Record], name: str) -> float:
    stored = (record.metrics.get(name) or record.metrics.get("step_time_s") for record in completed)
    known = [_deviation(values) for values in stored if isinstance(values, list)]
    return statistics.median(known) if known else 0.0


def _deviation(values: Sequence[float | None]) -> float:
    """Return the deviation of the logarithm, by the quartiles, which a burst leaves alone; 0 of a few."""
    known = sorted(value for value in values if value is not None and value > 0)
    quarter = len(known) // 4
    return math.log(known[-1 - quarter] / known[quarter]) / NORMAL_QUARTILES if quarter else 0.0


def _breakdown(completed: Sequence[Record]) -> Iterator[Reading]:
    row = METRICS["breakdown_bytes"]
    parts: dict[str, list[float]] = {}
    for record in completed:
        for category, size in (record.metrics.get(row.name) or {}).items():
            parts.setdefault(category, []).append(size)
    peaks = [scalar(record, "peak_allocated_bytes") for record in completed] if parts else []
    peak = max((value for value in peaks if value is not None), default=None)
    for category, sizes in parts.items():
        yield Reading(f"{row.name}.{category}", row.unit, row.better, row.gate, tuple(sizes), peak)


def _facts(completed: Sequence[Record]) -> Iterator[Reading]:
    for fact in FACTS:
        known = [value for record in completed if (value := _at(record, fact.path)) is not None]
        if all(isinstance(value, (int, float)) for value in known):
            yield Reading(fact.name, fact.unit, "neither", "exact", tuple(known))
        else:
            yield Reading(fact.name, fact.unit, "neither", "exact", tuple(map(_text, known)))


def _at(record: Record, path: tuple[str, ...]) -> Any:
    value: Any = record.detail
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value[name]}" for name in sorted(value))
    return str(value)
