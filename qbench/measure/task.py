"""The request to a worker, and its answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from qbench.errors import MeasureError
from qbench.records.attributes import Attributes
from qbench.records.parts import Detail, Environment, Metrics
from qbench.records.record import Outcome
from qbench.scenario.schema import MeasureSettings, Point, RunDevice

Phase = Callable[[str], None]
"""Called with the name of each phase of a task as it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One process's work: measure one point once."""

    point: Point
    device: RunDevice
    settings: MeasureSettings
    repeat: int
    """Number of the process among those of its point, from 0."""
    gpu: str | None = None
    """Card of the catalog that a null GPU is; None on any other device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Attributes):
    """What became of a piece of work: the part of a record that its process knows."""

    outcome: Outcome
    metrics: Metrics = field(default_factory=dict)  # type: ignore[assignment]
    detail: Detail = field(default_factory=dict)  # type: ignore[assignment]
    environment: Environment = field(default_factory=dict)  # type: ignore[assignment]

    def to_json(self) -> str:
        """Return the measurement as one line of JSON."""
        return json.dumps({name: getattr(self, name) for name in _FIELDS})


Attempt = Callable[[], Measurement]
"""What a worker runs. It travels by pickle, so it is a module's function or a partial of one."""

_FIELDS = ("outcome", "metrics", "detail", "environment")


def measurement_from_json(text: str | bytes) -> Measurement:
    """Return the measurement that a JSON document describes. Raises MeasureError when it is not one."""
    try:
        values = json.loads(text)
        return Measurement(**{name: values[name] for name in _FIELDS})
    except (ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"the worker's answer is not a measurement: {error!r:.200}") from error
