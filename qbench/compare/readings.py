"""What a result says, as named values that can be held against a baseline: one value a process."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qbench.compare.results import Result, stored_number, voided
from qbench.records.metrics import FACTS, METRICS, SCALARS, Better, Gate, scalar
from qbench.records.record import Kind, Record

NORMAL_QUARTILES = 1.349
"""Distance of the quartiles of a normal distribution, in its deviations."""


Values = tuple[float, ...] | tuple[str, ...]
"""One for each process that has it; texts for what is no number."""


_NUMBERS = {int, float, bool}


class Reading(NamedTuple):
    """One metric, fact or category of a result."""

    name: str
    unit: str
    better: Better
    gate: Gate
    values: Values
    whole: float | None = None
    """What a relative tolerance is taken of, where it is not the value itself: the peak, for its parts."""
    within: float = 0.0
    """Deviation of the logarithm of a process's raw values, median over processes; 0 where it is unknown."""


def values_of(result: Result) -> dict[str, Values]:
    """Return every known value of the processes that ended ok, by name: of a metric, fact or category."""
    completed = result.completed
    found = (*_metrics(completed), *_breakdown(completed).items(), *_facts(completed))
    return {name: values for name, values in found if values}


@functools.cache
def kind_of(name: str, kind: Kind) -> tuple[str, Better, Gate]:
    """Return unit, direction and rule of a metric, fact or category, as plans or measurements have it."""
    row = METRICS.get(name.partition(".")[0])
    if row is None:
        return next(fact.unit for fact in FACTS if fact.name == name), "neither", "exact"
    # A planned time is one figure of a catalog's card: nothing was timed that could have slowed down.
    planned = row.gate == "statistical" and kind == "plan"
    return row.unit, row.better, "report" if planned else row.gate


def reading_of(result: Result, name: str, values: Values) -> Reading:
    """Return values of a result with all that is needed to judge them."""
    unit, better, gate = kind_of(name, result.kind)
    whole = _peak(result.completed) if name.startswith("breakdown_bytes.") else None
    within = _within(result.completed, name) if gate == "statistical" else 0.0
    return Reading(name, unit, better, gate, values, whole, within)


def _metrics(completed: Sequence[Record]) -> Iterator[tuple[str, Values]]:
    valid = [(record, voided(record)) for record in completed]
    stored = {name for record in completed for name in record.metrics}
    for name in SCALARS:
        # Tokens per second follow from step times where they are not stored.
        if name in stored or name == "tokens_per_s":
            values = [stored_number(record, name) for record, void in valid if name not in void]
            yield name, tuple([value for value in values if value is not None and math.isfinite(value)])


def _peak(completed: Sequence[Record]) -> float | None:
    peaks = [scalar(record, "peak_allocated_bytes") for record in completed]
    return max((peak for peak in peaks if peak is not None), default=None)


def _within(completed: Sequence[Record], name: str) -> float:
    stored = (record.metrics.get(name) or record.metrics.get("step_time_s") for record in completed)
    known = [_deviation(values) for values in stored if isinstance(values, list)]
    return statistics.median(known) if known else 0.0


def _deviation(values: Sequence[float | None]) -> float:
    """Return the deviation of the logarithm, by the quartiles, which a burst leaves alone; 0 of a few."""
    known = sorted(value for value in values if value is not None and value > 0)
    quarter = len(known) // 4
    return math.log(known[-1 - quarter] / known[quarter]) / NORMAL_QUARTILES if quarter else 0.0


def _breakdown(completed: Sequence[Record]) -> dict[str, Values]:
    parts: dict[str, tuple[float, ...]] = {}
    for record in completed:
        for category, size in (record.metrics.get("breakdown_bytes") or {}).items():
            name = f"breakdown_bytes.{category}"
            parts[name] = (*parts.get(name, ()), size)
    return dict(parts)


def _facts(completed: Sequence[Record]) -> Iterator[tuple[str, Values]]:
    for fact in FACTS:
        known = [value for record in completed if (value := _at(record, fact.path)) is not None]
        if {type(value) for value in known} <= _NUMBERS:
            yield fact.name, tuple(known)
        else:
            yield fact.name, tuple(map(_text, known))


def _at(record: Record, path: tuple[str, ...]) -> Any:
    value: Any = record.detail
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join([f"{name} {value[name]}" for name in sorted(value)])
    return str(value)
