"""A `Record`: what was planned or measured for one point, by which code, on which machine."""

from __future__ import annotations

import functools
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ValidationError
from pydantic_core import from_json

from qbench.errors import RecordError
from qbench.records.attributes import Attributes
from qbench.records.fits import with_unmodelled
from qbench.records.upgrades import UPGRADES, Upgrade
from qbench.scenario.schema import Point, portable, stored_point

if TYPE_CHECKING:
    from qbench.records.parts import Detail, Environment, Metrics
    from qbench.scenario.importers.keys import Effect

SCHEMA_VERSION = 2
# 1: first version. 2: a fit's verdict is one of four values, with the numbers behind it.

Kind = Literal["plan", "measurement", "dryrun"]
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

_STORED = tuple(key for key in _KEYS if key not in ("point", "point_id"))
_WORDS = {"kind": get_args(Kind), "outcome": get_args(Outcome)}
_OBJECTS = ("metrics", "detail", "environment")


def utc_now() -> str:
    """Return the present time as ISO 8601 text in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def run_id_of(name: str) -> str:
    """Return the id of a run of that name which begins now, such as demo-20261128T141500Z."""
    return f"{name}-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"


def run_name(run_id: str) -> str:
    """Return the name that `run_id_of` made an id of."""
    return re.sub(r"-\d{8}T\d{6}Z.*", "", run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Attributes):
    """One planned or measured result of a `Point`. Sizes are bytes, times seconds; unknown values are None.

    Values are raw: a measured metric is a list with one value per step. `value(metric)` gives the median.
    """

    run_id: str
    """Name of the run that made the record."""
    point: Point
    """The training step that was planned or measured."""
    kind: Kind
    """plan, measurement of one process, or dryrun of a program on a null GPU."""
    outcome: Outcome
    """ok, oom, timeout, crashed or error; oom is a result like any other, `error` explains the others."""
    metrics: Metrics
    """Values by metric name (see qbench.records.metrics); an unknown one is absent or None."""
    detail: Detail = field(default_factory=dict)  # type: ignore[assignment]
    """What explains the metrics, as stored (keys and units: `qbench.records.parts.Detail`)."""
    environment: Environment = field(default_factory=dict)  # type: ignore[assignment]
    """Device, machine, library versions and code behind the numbers (`qbench.records.parts.Environment`)."""
    created_at: str = field(default_factory=utc_now)
    """ISO 8601 time in UTC."""
    schema_version: int = SCHEMA_VERSION

    @property
    def point_id(self) -> str:
        """Identity of the point, equal over runs and machines."""
        return self.point.point_id

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values, as records.jsonl and `qbench plan --json` have it."""
        point = portable(self.point, _config_digest(self.environment) or None)
        values = {key: getattr(self, key) for key in _KEYS}
        return values | {"point": point.model_dump(mode="json"), "point_id": point.point_id}


def with_left_out(record: Record, caveats: Sequence[str], unmodelled: Mapping[str, Effect]) -> Record:
    """Return a plan with what it omits of another tool's config; its verdicts claim no more than that."""
    if not caveats and not unmodelled:
        return record
    detail: Detail = {**record.detail, "caveats": [*record.caveats, *caveats]}
    if unmodelled:
        detail["unmodelled"] = sorted(unmodelled)
        detail["fits"] = [with_unmodelled(fit, unmodelled).to_values() for fit in record.fits]
    return replace(record, detail=detail)


def record_from_dict(values: dict[str, Any], where: str) -> Record:
    """Return the record that `values` describe; `where` names the file and line in messages.

    Raises RecordError when a key is missing or of the wrong kind, a metric, detail or fact of the environment
    has not the shape that readers rely on, the point is not valid or the version is unknown.
    """
    point = _shape().sound_point(values)
    if point is not None and _is_current(values):
        return _record(values, point)
    values = upgraded(values, where)
    missing = [key for key in _KEYS if key not in values]
    if missing:
        raise RecordError(f"{where}: the record lacks {', '.join(missing)}; it was not written by qbench")
    for key, allowed in _WORDS.items():
        if values[key] not in allowed:
            raise RecordError(f"{where}: {key} is {brief(values[key])}; allowed: {', '.join(allowed)}")
    for key in _OBJECTS:
        if not isinstance(values[key], dict):
            raise RecordError(f"{where}: {key} is {brief(values[key])}; it must be an object")
    problem = _shape().shape_problem(values)
    if problem is not None:
        raise RecordError(f"{where}: {problem}; the record was damaged, or not written by qbench")
    return record_as_written(values, where)


def record_as_written(values: Mapping[str, Any], where: str) -> Record:
    """Return the record of values that are known to be what `Record.to_dict` of this version gave.

    Raises RecordError when the point is not valid.
    """
    return _record(values, _point(values["point"], where))


def sound_record(line: bytes) -> Record | None:
    """Return the record of a line, for reading alone (see `sound_line`); None where something is wrong."""
    values = _shape().sound_line(line)
    if values is None:
        values = _sound_older(line)
    elif values["schema_version"] in UPGRADES:
        values = upgraded(values, "")
    return _record(values, values["point"]) if values is not None and _is_current(values) else None


def _sound_older(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line of an older version, brought to this one; None where something is wrong."""
    try:
        values = from_json(line, allow_inf_nan=False)
        version = values.get("schema_version") if isinstance(values, dict) else None
        if not isinstance(version, int) or version not in UPGRADES:
            return None
        values = upgraded(values, "")
    except (ValueError, RecordError):
        return None
    point = _shape().sound_point(values)
    return None if point is None else values | {"point": point}


@functools.cache
def _shape() -> ModuleType:
    """Return the module whose models take a while to build, without an import statement for each line."""
    from qbench.records import shape

    return shape


def _is_current(values: Mapping[str, Any]) -> bool:
    words = all(values[key] in allowed for key, allowed in _WORDS.items())
    return words and values["schema_version"] == SCHEMA_VERSION


def _record(values: Mapping[str, Any], point: Point) -> Record:
    point = stored_point(point, _config_digest(values["environment"]))
    return Record(point=point, **{key: values[key] for key in _STORED})


def _config_digest(environment: Mapping[str, Any]) -> str:
    return (environment.get("inputs") or {}).get("config.json") or ""


def brief(value: Any) -> str:
    """Return any value on one short line, however deeply it nests."""
    return reprlib.repr(value)


def upgraded(
    values: dict[str, Any],
    where: str,
    *,
    upgrades: Mapping[int, Upgrade] = UPGRADES,
    newest: int = SCHEMA_VERSION,
) -> dict[str, Any]:
    """Return the values of a stored record brought to the newest version, one version at a time.

    Raises RecordError when the version is missing, newer than `newest`, or has no upgrade.
    """
    version = values.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise RecordError(f"{where}: schema_version is {brief(version)}; this is not a qbench record")
    if version > newest:
        raise RecordError(f"{where}: schema_version {version} is newer than {newest}; update qbench")
    for step in range(version, newest):
        if step not in upgrades:
            raise RecordError(f"{where}: schema_version {step} cannot be read; 1 to {newest} can")
        values = upgrades[step](values) | {"schema_version": step + 1}
    return values


def _point(values: Any, where: str) -> Point:
    try:
        return Point.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(("point", *(str(part) for part in first["loc"])))
        raise RecordError(f"{where}: {key}: {first['msg']}") from error
