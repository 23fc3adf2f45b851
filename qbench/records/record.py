"""A `Record`: what was planned or measured for one point, by which code, on which machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import ValidationError

from qbench.errors import RecordError
from qbench.scenario.schema import Point

SCHEMA_VERSION = 1
# 1: first version.

Kind = Literal["plan", "measurement"]
Outcome = Literal["ok", "oom", "timeout", "crashed", "error"]

_KEYS = (
    "schema_version",
    "run_id",
    "point_id",
    "point",
    "kind",
    "outcome",
    "metrics",
    "detail",
    "environment",
    "created_at",
)


def utc_now() -> str:
    """Return the present time as ISO 8601 text in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One planned or measured result. Values are raw; statistics are computed when read."""

    run_id: str
    """Name of the run that made the record."""
    point: Point
    """The training step that was planned or measured."""
    kind: Kind
    """plan or measurement."""
    outcome: Outcome
    """How it ended; oom is a result like any other."""
    metrics: dict[str, Any]
    """Values by metric name (see qbench.records.metrics); an unknown one is absent or None."""
    detail: dict[str, Any] = field(default_factory=dict)
    """What explains the metrics: phases, caveats, module checks, repeat number, error text."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Device, machine, library versions and code that the record speaks for."""
    created_at: str = field(default_factory=utc_now)
    """ISO 8601 time in UTC."""
    schema_version: int = SCHEMA_VERSION

    @property
    def point_id(self) -> str:
        """Identity of the point, equal over runs and machines."""
        return self.point.point_id

    @property
    def device(self) -> str | None:
        """cpu or cuda: whose kernels the record describes."""
        return self.environment.get("device")

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values, keys in the order of the format."""
        values = {key: getattr(self, key) for key in _KEYS}
        return values | {"point": self.point.model_dump(mode="json")}


def record_from_dict(values: dict[str, Any], where: str) -> Record:
    """Return the record that `values` describe; `where` names the file and line in messages.

    Raises RecordError when a key is missing, the point is not valid or the version is unknown.
    """
    version = values.get("schema_version")
    if not isinstance(version, int):
        raise RecordError(f"{where}: schema_version is {version!r}; this is not a qbench record")
    if version > SCHEMA_VERSION:
        raise RecordError(f"{where}: schema_version {version} is newer than {SCHEMA_VERSION}; update qbench")
    missing = [key for key in _KEYS if key not in values]
    if missing:
        raise RecordError(f"{where}: the record lacks {', '.join(missing)}; it was not written by qbench")
    try:
        point = Point.model_validate(values["point"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{where}: point.{key}: {first['msg']}") from error
    rest = {key: values[key] for key in _KEYS if key not in ("point", "point_id")}
    return Record(point=point, **rest)
