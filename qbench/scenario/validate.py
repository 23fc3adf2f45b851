"""Finds every problem in the plain values of a scenario, each with the path of the key it is about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from qbench.errors import KeyPath, Problem, nearest
from qbench.scenario.schema import Point, Scenario
from qbench.scenario.settings import (
    GROUPS,
    LEAVES,
    RIGHT_NAMES,
    SETTINGS,
    Leaf,
    flatten,
    group_model,
    nullable,
    resolve,
    shown,
)


def scenario_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of a scenario given as plain values, as YAML holds them."""
    yield from _mapping_problems(values, Scenario, ())
    base, matrix = values.get("base"), values.get("matrix")
    varies = isinstance(matrix, Mapping) and "model" in matrix
    if isinstance(base, Mapping) and not varies:
        yield from missing_model(base, ("base",))


def settings_problems(settings: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """Yield the problems of nested settings, as in `base`; any setting may be absent."""
    yield from _mapping_problems(settings, Point, path)


def changes_problems(changes: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """Yield the problems of changes to a point: dotted path or short name to value."""
    if not isinstance(changes, Mapping) or not changes:
        yield Problem(
            path, f"given {shown(changes)}; allowed: settings and their values, such as precision: nf4"
        )
        return
    yield from _name_problems(changes, path)
    for name, value in changes.items():
        target = resolve(name)
        if target is not None:
            yield from _value_problems(value, target, (*path, name))


def missing_model(settings: Mapping[str, Any], path: KeyPath = ()) -> Iterator[Problem]:
    """Yield the one problem of settings that name no model."""
    if "model" not in settings:
        yield Problem((*path, "model"), f"missing; give it: {Point.model_fields['model'].description}")


def _mapping_problems(values: Any, model: type[BaseModel], path: KeyPath) -> Iterator[Problem]:
    if not isinstance(values, Mapping):
        yield Problem(path, f"given {shown(values)}; allowed: the keys {', '.join(model.model_fields)}")
        return
    for key, value in values.items():
        if key not in model.model_fields:
            yield Problem((*path, key), _unknown_key(key, model))
        elif model is Scenario and key in _SECTIONS:
            yield from _SECTIONS[key](value, (*path, key))
        else:
            yield from _field_problems(value, model, key, (*path, key))
    for name, field in model.model_fields.items():
        if field.is_required() and name not in values and (model, name) != (Point, "model"):
            yield Problem((*path, name), f"missing; give it: {field.description}")


def _field_problems(value: Any, model: type[BaseModel], name: str, path: KeyPath) -> Iterator[Problem]:
    group = group_model(model, name)
    if group is not None:
        if value is not None or not nullable(model, name):
            yield from _mapping_problems(value, group, path)
    elif text := Leaf(model, name).problem(value):
        yield Problem(path, text)


def _unknown_key(key: str, model: type[BaseModel]) -> str:
    target = resolve(key)
    if target is not None and model is Scenario:
        return f"not a key of a scenario; write it in base: {_as_nested(target)}"
    if target is not None and model is Point:
        return f"base takes nested keys; write {_as_nested(target)}"
    return _not_a_name("unknown key", key, model.model_fields)


def _as_nested(path: str) -> str:
    group, _, name = path.rpartition(".")
    return f"{group}: {{{name}: ...}}" if group else f"{name}: ..."


def _not_a_name(what: str, given: str, names: Iterable[str], also: Iterable[str] = ()) -> str:
    known = [*names, *also]
    spoken = RIGHT_NAMES.get(given.casefold())
    # A single letter is like anything that has it.
    alike = nearest(given, [name for name in known if len(name) > 1], count=1)
    close = [spoken] if spoken in known else alike
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{what}; {hint}allowed: {', '.join(names)}"


def _name_problems(values: Mapping[str, Any], path: KeyPath) -> Iterator[Problem]:
    """Yield unknown names, one setting under two names, and a group beside one of its own settings."""
    seen: dict[str, str] = {}
    for name in values:
        target = resolve(name)
        if target is None:
            yield Problem((*path, name), _not_a_name("unknown setting", name, [*SETTINGS, *GROUPS], LEAVES))
            continue
        for other, other_name in seen.items():
            if other == target or other.startswith(f"{target}.") or target.startswith(f"{other}."):
                yield Problem((*path, name), f"sets the same as {other_name}; keep one of the two")
        seen[target] = name


def _value_problems(value: Any, target: str, path: KeyPath) -> Iterator[Problem]:
    leaf = LEAVES.get(target)
    if leaf is None:
        yield from _field_problems(value, Point, target, path)
    elif text := leaf.problem(value):
        yield Problem(path, text)


def _matrix_problems(matrix: Any, path: KeyPath) -> Iterator[Problem]:
    if not isinstance(matrix, Mapping):
        yield Problem(
            path, f"given {shown(matrix)}; allowed: settings and their lists, such as precision: [bf16, nf4]"
        )
        return
    yield from _name_problems(matrix, path)
    for name, options in matrix.items():
        target = resolve(name)
        if target is not None:
            yield from _options_problems(options, target, (*path, name))


def _options_problems(options: Any, target: str, path: KeyPath) -> Iterator[Problem]:
    if not isinstance(options, list) or not options:
        yield Problem(path, f"given {shown(options)}; allowed: a list of at least one value")
        return
    seen: dict[str, int] = {}
    for index, value in enumerate(options):
        here = (*path, index)
        problems = list(_value_problems(value, target, here))
        yield from problems
        if problems:
            continue
        first = seen.setdefault(json.dumps(normal_changes({target: value}), sort_keys=True), index)
        if first != index:
            yield Problem(
                here, f"{shown(value)} is in the list twice; it is also value {first + 1} of {target}"
            )


def normal_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes that have no problems as dotted path to value, values as Point would hold them."""
    flat = flatten({resolve(name) or name: value for name, value in changes.items()})
    return {path: LEAVES[path].normal(value) if path in LEAVES else value for path, value in flat.items()}


def _list_problems(entries: Any, path: KeyPath) -> Iterator[Problem]:
    if not isinstance(entries, list):
        yield Problem(path, f"given {shown(entries)}; allowed: a list, such as [{{precision: nf4, r: 8}}]")
        return
    for index, entry in enumerate(entries):
        yield from changes_problems(entry, (*path, index))


_SECTIONS: dict[str, Callable[[Any, KeyPath], Iterator[Problem]]] = {
    "base": settings_problems,
    "matrix": _matrix_problems,
    "exclude": _list_problems,
    "include": _list_problems,
}
"""The keys of a scenario whose values are settings of points."""
