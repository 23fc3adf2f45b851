"""A scenario's points: base x matrix, less `exclude`, and `include` after them, each point once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from qbench.errors import KeyPath, Problem, ScenarioError
from qbench.scenario.schema import Point, Scenario
from qbench.scenario.settings import GROUPS, LEAVES, flatten, nest, shown
from qbench.scenario.validate import (
    changes_problems,
    missing_model,
    normal_changes,
    scenario_problems,
    settings_problems,
)

MAX_POINTS = 10_000
"""Points that a scenario may have unless the caller allows more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A combination of the matrix or an entry of include, before it is a Point."""

    path: KeyPath
    changes: dict[str, Any]
    settings: dict[str, Any]


def expand(scenario: Scenario, max_points: int = MAX_POINTS) -> tuple[Point, ...]:
    """Return the points of a scenario in file order, the last matrix key varying fastest.

    Raises ScenarioError with every problem; a scenario of more than `max_points` is refused before any
    point is built.
    """
    _raise_any(scenario_problems(scenario.model_dump()))
    points, problems = expansion(
        scenario.base, scenario.matrix, scenario.exclude, scenario.include, max_points=max_points
    )
    _raise_any(problems)
    return points


def point_from(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Point:
    """Return the point of nested settings `base` with `changes` by dotted path or short name.

    Raises ScenarioError with one line for each problem.
    """
    problems = list(settings_problems(base))
    if changes:
        problems += changes_problems(changes)
    if "model" not in changes:
        problems += missing_model(base)
    _raise_any(problems)
    try:
        return _point(_apply(_settings(base), normal_changes(changes)))
    except ValidationError as error:
        raise ScenarioError(_reasons(error)) from error


def expansion(
    base: Mapping[str, Any],
    matrix: Mapping[str, list[Any]],
    exclude: list[dict[str, Any]],
    include: list[dict[str, Any]],
    *,
    max_points: int,
) -> tuple[tuple[Point, ...], list[Problem]]:
    """Return the points of valid sections of a scenario, and what is wrong with their combinations."""
    count = _count(matrix, include)
    if count > max_points:
        text = (
            f"{count:,} points are more than the limit of {max_points:,}; shorten it or raise the limit "
            "(--max-points)"
        )
        return (), [Problem(("matrix",), text)]
    shared = _settings(base)
    candidates = [
        _Candidate(path=("matrix",), changes=changes, settings=_apply(shared, changes))
        for changes in _combinations(matrix)
    ]
    kept, problems = _kept(candidates, exclude)
    for index, entry in enumerate(include):
        changes = normal_changes(entry)
        kept.append(_Candidate(path=("include", index), changes=changes, settings=_apply(shared, changes)))
    if not kept:
        problems.append(Problem(("exclude",), "drops every point; remove an entry or narrow it"))
    points, faults = _points(kept)
    return points, problems + faults


def _count(matrix: Mapping[str, list[Any]], include: list[Any]) -> int:
    return math.prod(len(options) for options in matrix.values()) + len(include)


def _combinations(matrix: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    axes = [[normal_changes({name: value}) for value in options] for name, options in matrix.items()]
    for choice in itertools.product(*axes):
        yield {path: value for part in choice for path, value in part.items()}


def _settings(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting of a point by dotted path: those of `base`, defaults for the rest."""
    defaults = {path: leaf.default for path, leaf in LEAVES.items() if path != "model"}
    return _apply(defaults, normal_changes(base))


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
    return {path: leaf.default for path, leaf in LEAVES.items() if path.startswith(f"{group}.")}


def _kept(
    candidates: list[_Candidate], exclude: list[dict[str, Any]]
) -> tuple[list[_Candidate], list[Problem]]:
    """Return the candidates that no entry of exclude matches, and the entries that match none."""
    dropped: set[int] = set()
    problems = []
    for number, entry in enumerate(exclude):
        wanted = normal_changes(entry).items()
        matches = [
            index for index, candidate in enumerate(candidates) if wanted <= candidate.settings.items()
        ]
        if not matches:
            text = f"matches no point of the matrix: {_as_text(entry)}; correct or remove it"
            problems.append(Problem(("exclude", number), text))
        dropped.update(matches)
    return [candidate for index, candidate in enumerate(candidates) if index not in dropped], problems


def _points(candidates: list[_Candidate]) -> tuple[tuple[Point, ...], list[Problem]]:
    """Return each distinct point once, in order, and the candidates that make no point, by reason."""
    points: dict[Point, None] = {}
    faults: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        try:
            points.setdefault(_point(candidate.settings))
        except ValidationError as error:
            for reason in _reasons(error):
                faults.setdefault(reason, []).append(candidate)
    return tuple(points), [_fault(reason, places) for reason, places in faults.items()]


def _fault(reason: str, places: list[_Candidate]) -> Problem:
    first = places[0]
    if not first.changes:
        return Problem(("base",), reason)
    more = f" and {len(places) - 1:,} more" if len(places) > 1 else ""
    return Problem(first.path, f"{reason} (at {_as_text(first.changes)}{more}); correct or exclude it")


def _point(settings: Mapping[str, Any]) -> Point:
    return Point.model_validate(nest(settings))


def _reasons(error: ValidationError) -> list[str]:
    return [str(detail["ctx"]["error"]) if "ctx" in detail else detail["msg"] for detail in error.errors()]


def _as_text(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={shown(value)}" for path, value in flatten(changes).items())


def _raise_any(problems: Iterable[Problem]) -> None:
    listed = list(problems)
    if listed:
        raise ScenarioError(listed)
