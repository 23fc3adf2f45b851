"""What a result says, as named values that can be compared with a baseline: one value a process."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qbench.comparison.results import Result, stored_number, voided
from qbench.records.metrics import FACTS, METRICS, SCALARS, Better, Gate, scalar
from qbench.records.record import Kind, Record

NORMAL_QUARTILES = 1.349
"""Distance of the quartiles of a normal distribution, in its deviations."""


Values = tuple[float, ...] | tuple[str, ...]
"""One for each process that has it; texts for what is no number."""


_NUMBERS = {int, float, bool}
_NUMERIC = frozenset(SCALARS)
_FACT_PATHS = tuple((fact.name, fact.path) for fact in FACTS)


class MetricValues(NamedTuple):
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
    """Return every known value of the processes that ended ok, by name: of a metric, category or fact."""
    each = [_process_values(record) for record in result.completed]
    if len(each) == 1:
        # Most results are plans, and of 10,000 records this line is worth a tenth of the time.
        return {name: (value,) for name, value in each[0].items()}  # type: ignore[misc]
    return {name: _alike(name, each) for name in dict.fromkeys(name for values in each for name in values)}


def _process_values(record: Record) -> dict[str, float | str]:
    void = voided(record)
    found: dict[str, float | str] = {}
    for name, value in record.metrics.items():
        if name in _NUMERIC and name not in void:
            number = scalar(record, name) if type(value) is list else value
            if isinstance(number, (int, float)) and math.isfinite(number):
                found[name] = float(number)
    if "tokens_per_s" not in found and "tokens_per_s" not in void:
        # It follows from step times where it is not stored.
        number = stored_number(record, "tokens_per_s")
        if number is not None and math.isfinite(number):
            found["tokens_per_s"] = number
    for category, size in record.breakdown_bytes.items():
        found[f"breakdown_bytes.{category}"] = size
    for name, (section, key) in _FACT_PATHS:
        held = record.detail.get(section)
        value = held.get(key) if type(held) is dict else None
        if value is not None:
            found[name] = value if type(value) in _NUMBERS else _text(value)
    return found


def _alike(name: str, each: Iterable[Mapping[str, float | str]]) -> Values:
    """Return the processes' values of one name: all numbers, or all texts where one of them is a text."""
    known = [values[name] for values in each if name in values]
    numbers = [value for value in known if not isinstance(value, str)]
    return tuple(numbers) if len(numbers) == len(known) else tuple(map(str, known))


@functools.cache
def kind_of(name: str, kind: Kind) -> tuple[str, Better, Gate]:
    """Return unit, direction and rule of a metric, fact or category, as plans or measurements have it."""
    row = METRICS.get(name.partition(".")[0])
    if row is None:
        return next(fact.unit for fact in FACTS if fact.name == name), "neither", "exact"
    # A planned time is one figure of a catalog's card: nothing was timed that could have slowed down.
    planned = row.gate == "statistical" and kind == "plan"
    return row.unit, row.better, "report" if planned else row.gate


def metric_values(result: Result, name: str, values: Values) -> MetricValues:
    """Return values of a result with all that is needed to judge them."""
    unit, better, gate = kind_of(name, result.kind)
    whole = _peak(result.completed) if name.startswith("breakdown_bytes.") else None
    # One process says nothing of the noise, whatever its steps do.
    within = _within(result.completed, name) if gate == "statistical" and len(values) > 1 else 0.0
    return MetricValues(name, unit, better, gate, values, whole, within)


def _peak(completed: Sequence[Record]) -> float | None:
    peaks = [scalar(record, "peak_allocated_bytes") for record in completed]
    return max((peak for peak in peaks if peak is not None), default=None)


def _within(completed: Sequence[Record], name: str) -> float:
    stored = (record.raw(name) or record.raw("step_time_s") for record in completed)
    known = [_deviation(values) for values in stored if values]
    return statistics.median(known) if known else 0.0


def _deviation(values: Sequence[float | None]) -> float:
    """Return the deviation of the logarithm, by the quartiles, which a burst leaves alone; 0 of a few."""
    known = sorted(value for value in values if value is not None and value > 0)
    quarter = len(known) // 4
    return math.log(known[-1 - quarter] / known[quarter]) / NORMAL_QUARTILES if quarter else 0.0


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join([f"{name} {value[name]}" for name in sorted(value)])
    return str(value)
