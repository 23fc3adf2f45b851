"""A scenario's points: base x matrix, less `exclude`, and `include` after them, each point once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qbench.errors import KeyPath, Problem, ScenarioError, shown
from qbench.scenario.schema import Point, Scenario
from qbench.scenario.settings import GROUPS, LEAVES, SETTINGS, flag_of, flatten, nest
from qbench.scenario.validate import (
    Flat,
    base_settings,
    changed_settings,
    listed_settings,
    missing_model,
    varied_settings,
)

MAX_POINTS = 10_000
"""Points that a scenario may have unless the caller allows more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """The sections of a scenario that make its points, as dotted paths and values of a Point."""

    base: Flat
    axes: list[list[Flat]]
    exclude: list[Flat]
    include: list[Flat]

    @property
    def count(self) -> int:
        """Points before any is excluded or found twice."""
        return math.prod(map(len, self.axes)) + len(self.include)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A combination of the matrix or an entry of include, before it is a Point."""

    path: KeyPath
    changes: Flat
    settings: Flat


def expand(scenario: Scenario, max_points: int = MAX_POINTS) -> tuple[Point, ...]:
    """Return the points of a scenario in file order, the last matrix key varying fastest.

    Raises ScenarioError with every problem; a scenario of more than `max_points` is refused before any
    point is built.
    """
    problems: list[Problem] = []
    sections = read_sections(vars(scenario), problems)
    points = combined(sections, max_points, problems) if not problems else ()
    if problems:
        raise ScenarioError(problems)
    return points


def point_from(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Point:
    """Return the point of nested settings `base` with `changes` by dotted path or short name.

    Raises ScenarioError with one line for each problem.
    """
    problems: list[Problem] = []
    settings = base_settings(base, (), problems)
    changed = changed_settings(changes, (), problems) if changes else {}
    if "model" not in base and "model" not in changes:
        problems.append(missing_model())
    if problems:
        raise ScenarioError(problems)
    try:
        return _point(_apply(_apply(_DEFAULTS, settings), changed))
    except ValidationError as error:
        raise ScenarioError(_reasons(error)) from error


def read_sections(values: Mapping[str, Any], problems: list[Problem]) -> Sections:
    """Return the sections of a scenario's values, each setting checked; `problems` takes what is wrong.

    A section that is no mapping or list at all counts as absent.
    """
    base, matrix = values.get("base"), values.get("matrix", {})
    sections = Sections(
        base=base_settings(base, ("base",), problems),
        axes=varied_settings(matrix, ("matrix",), problems),
        exclude=listed_settings(values.get("exclude", []), ("exclude",), problems),
        include=listed_settings(values.get("include", []), ("include",), problems),
    )
    if isinstance(base, Mapping) and "model" not in base and "model" not in (matrix or ()):
        problems.append(missing_model(("base",)))
    return sections


def combined(sections: Sections, max_points: int, problems: list[Problem]) -> tuple[Point, ...]:
    """Return the points of sections without a problem; `problems` takes what is wrong with combinations."""
    if sections.count > max_points:
        text = (
            f"{sections.count:,} points are more than the limit of {max_points:,}; shorten it or raise the "
            "limit (--max-points)"
        )
        problems.append(Problem(path=("matrix",), text=text))
        return ()
    shared = _apply(_DEFAULTS, sections.base)
    candidates = []
    for choice in itertools.product(*sections.axes):
        changes = {path: value for part in choice for path, value in part.items()}
        candidates.append(_Candidate(path=("matrix",), changes=changes, settings=_apply(shared, changes)))
    kept = _kept(candidates, sections.exclude, problems)
    for index, changes in enumerate(sections.include):
        kept.append(_Candidate(path=("include", index), changes=changes, settings=_apply(shared, changes)))
    if not kept:
        text = "drops every point; remove an entry or narrow it"
        problems.append(Problem(path=("exclude",), text=text))
    return _points(kept, problems)


_ABSENT = ("distributed.", "vision.")
"""Groups that a point has only where it says so."""

_DEFAULTS: Flat = {
    **{
        path: leaf.default
        for path, leaf in LEAVES.items()
        if path != "model" and not path.startswith(_ABSENT)
    },
    "distributed": None,
    "vision": None,
}


def _apply(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with changes made; both map dotted paths to values."""
    changed = dict(settings)
    for path, value in changes.items():
        group = path.partition(".")[0]
        if path in GROUPS and value is None:
            changed = {name: kept for name, kept in changed.items() if not name.startswith(f"{path}.")}
            changed[path] = None
        elif group in changed and group in GROUPS:
            del changed[group]
            changed.update(_defaults_of(group))
        if path in LEAVES:
            changed[path] = value
    return changed


def _defaults_of(group: str) -> dict[str, Any]:
    of_group = {path: leaf for path, leaf in LEAVES.items() if path.startswith(f"{group}.")}
    return {path: leaf.default for path, leaf in of_group.items() if not leaf.is_required}


def _kept(candidates: list[_Candidate], exclude: list[Flat], problems: list[Problem]) -> list[_Candidate]:
    """Return the candidates that no entry of exclude matches; an entry that matches none is a problem."""
    dropped: set[int] = set()
    for number, entry in enumerate(exclude):
        wanted = entry.items()
        matches = [
            index for index, candidate in enumerate(candidates) if wanted <= candidate.settings.items()
        ]
        if not matches:
            text = f"matches no point of the matrix: {_as_text(entry)}; correct or remove it"
            problems.append(Problem(path=("exclude", number), text=text))
        dropped.update(matches)
    return [candidate for index, candidate in enumerate(candidates) if index not in dropped]


def _points(candidates: list[_Candidate], problems: list[Problem]) -> tuple[Point, ...]:
    """Return each distinct point once, in order; what makes no point is a problem for each reason."""
    points: dict[Point, None] = {}
    faults: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        try:
            points.setdefault(_point(candidate.settings))
        except ValidationError as error:
            for reason in _reasons(error):
                faults.setdefault(reason, []).append(candidate)
    problems += [_fault(reason, places) for reason, places in faults.items()]
    return tuple(points)


def _fault(reason: str, places: list[_Candidate]) -> Problem:
    first = places[0]
    if not first.changes:
        return Problem(path=("base",), text=reason)
    more = f" and {len(places) - 1:,} more" if len(places) > 1 else ""
    text = f"{reason} (at {_as_text(first.changes)}{more}); correct or exclude it"
    return Problem(path=first.path, text=text)


def _point(settings: Mapping[str, Any]) -> Point:
    return Point.model_validate(nest(settings))


def _reasons(error: ValidationError) -> list[str]:
    """Return why settings that are each allowed make no point."""
    return [_reason(found) for found in error.errors(include_url=False)]


def _reason(found: ErrorDetails) -> str:
    if found["type"] != "missing":
        return str(found["ctx"]["error"])
    path = ".".join(map(str, found["loc"]))
    leaf = LEAVES[path]
    row = SETTINGS[leaf.name]
    return f"{path} missing; give it{f' (--{flag_of(leaf.name)})' if row.names.flag else ''}: {row.help}"


def _as_text(changes: Flat) -> str:
    return ", ".join(f"{path}={shown(value)}" for path, value in flatten(changes).items())
