"""How far plans are from measurements: one error for each figure, and the median and worst of many."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureComparison:
    """One measured figure beside the plan of the same step."""

    id: str
    """Name of the measurement."""
    group: str
    """Project that measured, or the run folder."""
    figure: str
    """What was measured."""
    unit: str
    """bytes or count."""
    measured: int
    """What was measured, in `unit`."""
    planned: int
    """What was planned, in `unit`."""
    run: str
    """The step in short: model, precision, rank, batch, sequence length, checkpointing."""
    gpu: str
    """GPU that measured, which is also the one planned for."""
    stack: str
    """Versions of the libraries that measured."""
    conditions: str
    """What else is known of the measurement."""
    source: str
    """Where the measurement is."""

    @property
    def error_percent(self) -> float:
        """Plan less measurement, in percent of the measurement: negative when the plan is too small."""
        return 100 * (self.planned - self.measured) / self.measured

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, the error among them."""
        return asdict(self) | {"error_percent": self.error_percent}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Errors of one figure over the measurements of one group, in percent."""

    group: str
    figure: str
    count: int
    median_percent: float
    """Median of the absolute errors."""
    worst_percent: float
    """The error that is largest in absolute value, with its sign."""


def summarize(comparisons: Iterable[FigureComparison]) -> list[Accuracy]:
    """Return the accuracy of each figure by group, in the order in which they first come."""
    members: dict[tuple[str, str], list[float]] = {}
    for comparison in comparisons:
        members.setdefault((comparison.group, comparison.figure), []).append(comparison.error_percent)
    return [_accuracy(group, figure, errors) for (group, figure), errors in members.items()]


def _accuracy(group: str, figure: str, errors: Sequence[float]) -> Accuracy:
    return Accuracy(
        group=group,
        figure=figure,
        count=len(errors),
        median_percent=statistics.median(abs(error) for error in errors),
        worst_percent=max(errors, key=abs),
    )
