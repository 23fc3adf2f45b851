"""The shape of what a record carries, so that nothing that reads a record meets text for a number.

`records.parts` has the types; other keys of details and environment may hold anything that is not nested too
deeply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic cannot read that of Python before 3.12.

from qbench.records.metrics import METRICS
from qbench.records.parts import Detail, Environment, Metrics
from qbench.records.stored import Whole, Words
from qbench.scenario.schema import Point

MOST_LEVELS = 20
"""Levels of lists and objects within each other that a record may have; qbench writes six."""


class _Line(TypedDict):
    schema_version: Whole
    run_id: Words
    point_id: Words
    point: Point
    kind: Words
    outcome: Words
    metrics: Metrics
    detail: Detail
    environment: Environment
    created_at: Words


_LINE = TypeAdapter(_Line).validator
_SHALLOW: dict[str, frozenset[str]] = {
    "metrics": frozenset(METRICS),
    "detail": frozenset(
        (
            "caveats",
            "compute_capability",
            "context_bytes",
            "phases",
            "reconciliation_bytes",
            "static_breakdown_bytes",
            "timeline",
        )
    ),
    "environment": frozenset(("versions", "fingerprints", "settings", "inputs")),
}
"""Parts of a record, and their keys whose type leaves no room for nesting, which most of a record is in."""


_HOLDERS = (dict, list)


def sound_point(values: Mapping[str, Any]) -> Point | None:
    """Return the point of a record whose values have their shape, None where something is wrong."""
    try:
        point: Point = _LINE.validate_python(values)["point"]
    except ValidationError:
        return None
    return None if _nests_too_deeply(values, _SHALLOW) else point


def sound_line(line: bytes) -> dict[str, Any] | None:
    """Return the values of a record's line, each of its shape, None where something is wrong.

    Takes two thirds of the time of parsing and `sound_point`, but loses what nothing reads: the order of
    keys, unknown metrics, and whether a number was written with a fraction. The point is a Point.
    """
    if b"NaN" in line or b"Infinity" in line:
        return None  # Numbers to pydantic, but they are none in a record.
    try:
        values: dict[str, Any] = _LINE.validate_json(line)
    except ValidationError:
        return None
    return None if _nests_too_deeply(values, _SHALLOW) else values


def shape_problem(values: Mapping[str, Any]) -> str | None:
    """Return the first thing in a record's metrics, detail, environment or names of the wrong shape, or None.

    The text names the key: 'metrics.step_time_s: Input should be a valid number'. The point has its own.
    """
    try:
        _LINE.validate_python(values)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            if problem["loc"][0] != "point":
                return f"{_place(values, problem['loc'])}: {problem['msg']}"
    for part in _SHALLOW:
        if _nests_too_deeply(values, (part,)):
            return f"{part} nests more than {MOST_LEVELS} levels"
    return None


def _place(value: Any, location: tuple[int | str, ...]) -> str:
    """Return the keys of a location that are in the data; pydantic names branches of a type beside them."""
    names: list[str] = []
    for key in location:
        held = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if key in held:
            value = value[key]
            names.append(str(key))
    return ".".join(names)


def _nests_too_deeply(values: Mapping[str, Any], parts: Iterable[str]) -> bool:
    level = [
        value
        for part in parts
        for key, value in values[part].items()
        if type(value) in _HOLDERS and key not in _SHALLOW[part]
    ]
    for _ in range(MOST_LEVELS):
        if not level:
            return False
        # Level by level: a file of 10,000 records has some million containers, and calls would show.
        level = [
            inner
            for holder in level
            for inner in (holder.values() if type(holder) is dict else holder)
            if type(inner) in _HOLDERS
        ]
    return True
