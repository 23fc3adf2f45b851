"""What a worker is told, and what it answers: two plain values that travel as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from qbench.errors import MeasureError
from qbench.records.record import Outcome
from qbench.scenario.schema import Device, MeasureSettings, Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One process's work: measure one point once."""

    point: Point
    device: Device
    settings: MeasureSettings
    repeat: int
    """Number of the process among those of its point, from 0."""

    def to_json(self) -> str:
        """Return the task as one JSON document."""
        return json.dumps(
            {
                "point": self.point.model_dump(mode="json"),
                "device": self.device,
                "settings": self.settings.model_dump(mode="json"),
                "repeat": self.repeat,
            }
        )


def task_from_json(text: str) -> Task:
    """Return the task that a JSON document describes. Raises MeasureError when it is not one."""
    try:
        values = json.loads(text)
        return Task(
            point=Point.model_validate(values["point"]),
            device=values["device"],
            settings=MeasureSettings.model_validate(values.get("settings", {})),
            repeat=values.get("repeat", 0),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"this is not a measuring task: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What became of a task."""

    outcome: Outcome
    metrics: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the measurement as one JSON document."""
        return json.dumps({name: getattr(self, name) for name in _FIELDS})


_FIELDS = ("outcome", "metrics", "detail", "environment")


def measurement_from_json(text: str | bytes) -> Measurement:
    """Return the measurement that a JSON document describes. Raises MeasureError when it is not one."""
    try:
        values = json.loads(text)
        return Measurement(**{name: values[name] for name in _FIELDS})
    except (ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"the worker's answer is not a measurement: {error}") from error
