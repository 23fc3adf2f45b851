"""The sections of a scenario as settings by dotted path, and every problem of them with its key.

pydantic checks keys, types and limits of what stands nested. Names are checked here, since the matrix and the
lists take settings by dotted path or short name. Each value is checked once, as it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from qbench.errors import KeyPath, Problem, nearest, shown
from qbench.scenario.schema import Point, PointSettings, Scenario
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
)

Flat = dict[str, Any]
"""Dotted path to value as a Point holds it."""

_SECTIONS = {
    "base": f"the keys {', '.join(PointSettings.model_fields)}",
    "matrix": "settings and their lists, such as precision: [bf16, nf4]",
    "exclude": "a list, such as [{precision: nf4, r: 8}]",
    "include": "a list, such as [{precision: nf4, r: 8}]",
}
"""What the sections of a scenario hold."""


def problems_of(
    error: ValidationError, model: type[BaseModel], values: Any, path: KeyPath = ()
) -> Iterator[Problem]:
    """Yield the problems that pydantic found in the values of a model at a path, one for each key."""
    known: set[KeyPath] = set()
    for found in error.errors(include_url=False):
        owner, given = model, values
        inner: KeyPath = ()
        for part in found["loc"]:
            inner, given = (*inner, part), given.get(part) if isinstance(given, Mapping) else None
            group = group_model(owner, str(part)) if part in owner.model_fields else None
            if group is None:
                break
            owner = group
        else:
            yield Problem(path=path + inner, given=given, allowed=f"the keys {', '.join(owner.model_fields)}")
            continue
        # What is in the sections of a scenario has its own checks, and each part of a value one complaint.
        if inner not in known and not (owner is Scenario and inner[0] in _SECTIONS and inner != found["loc"]):
            yield _problem(found["type"], given, Leaf(owner, str(inner[-1])), path + inner)
        known.add(inner)


def _problem(kind: str, value: Any, leaf: Leaf, path: KeyPath) -> Problem:
    if kind == "extra_forbidden":
        return _unknown_key(leaf.name, leaf.model, path)
    if kind == "missing":
        description = leaf.model.model_fields[leaf.name].description
        return Problem(path=path, text=f"missing; give it: {description}")
    if leaf.model is Scenario and leaf.name in _SECTIONS:
        return Problem(path=path, given=value, allowed=_SECTIONS[leaf.name])
    return leaf.complaint(value, path)


def base_settings(values: Any, path: KeyPath, problems: list[Problem]) -> Flat:
    """Return nested settings, of which any may be absent, by dotted path; `problems` takes what is wrong."""
    if not isinstance(values, Mapping):
        return {}
    whole = {"model": "absent", **values}
    if "distributed" in values:
        whole["distributed"] = _completed("distributed", values["distributed"])
    try:
        settings = PointSettings.model_validate(whole)
    except ValidationError as error:
        problems += problems_of(error, PointSettings, whole, path)
        return {}
    flat = flatten(settings.model_dump(exclude_unset=True))
    given = flatten(values)
    return {name: value for name, value in flat.items() if name in given}


def _completed(group: str, values: Any) -> Any:
    """Return the values of a group with what it must have; a matrix may say that."""
    if not isinstance(values, Mapping) or not values:
        return values
    return {**{name: value for name, value in _SOME.items() if name in GROUPS[group].model_fields}, **values}


_SOME = {"strategy": "ddp", "gpus": 2}
"""Values that stand for settings without a default while those beside them are checked."""


def changed_settings(changes: Any, path: KeyPath, problems: list[Problem]) -> Flat:
    """Return changes to a point, by dotted path or short name, as dotted path to value."""
    if not isinstance(changes, Mapping) or not changes:
        allowed = "settings and their values, such as precision: nf4"
        problems.append(Problem(path=path, given=changes, allowed=allowed))
        return {}
    flat: Flat = {}
    for name, target in _targets(changes, path, problems).items():
        flat |= _value(changes[name], target, (*path, name), problems)
    return flat


def varied_settings(matrix: Any, path: KeyPath, problems: list[Problem]) -> list[list[Flat]]:
    """Return the axes of a matrix: for each the values of one setting, or one group of settings."""
    if not isinstance(matrix, Mapping):
        return []
    targets = _targets(matrix, path, problems).items()
    return [_options(matrix[name], target, (*path, name), problems) for name, target in targets]


def listed_settings(entries: Any, path: KeyPath, problems: list[Problem]) -> list[Flat]:
    """Return the changes of a list such as `include`."""
    if not isinstance(entries, list):
        return []
    return [changed_settings(entry, (*path, index), problems) for index, entry in enumerate(entries)]


def missing_model(path: KeyPath = ()) -> Problem:
    """Return the problem of settings that name no model."""
    description = PointSettings.model_fields["model"].description
    return Problem(path=(*path, "model"), text=f"missing; give it: {description}")


def _options(options: Any, target: str, path: KeyPath, problems: list[Problem]) -> list[Flat]:
    if not isinstance(options, list) or not options:
        problems.append(Problem(path=path, given=options, allowed="a list of at least one value"))
        return []
    seen: dict[str, int] = {}
    found: list[Flat] = []
    for index, value in enumerate(options):
        before = len(problems)
        found.append(_value(value, target, (*path, index), problems))
        first = seen.setdefault(json.dumps(found[-1], sort_keys=True), index)
        if first != index and len(problems) == before:
            text = f"{shown(value)} is in the list twice; it is also value {first + 1} of {target}"
            problems.append(Problem(path=(*path, index), text=text))
    return found


def _value(value: Any, target: str, path: KeyPath, problems: list[Problem]) -> Flat:
    """Return one setting, or those of a group, by dotted path."""
    leaf = LEAVES.get(target)
    try:
        if leaf is not None:
            return {target: leaf.normal(value)}
        if value is None and nullable(Point, target):
            return {target: None}
        whole = GROUPS[target].model_validate(_completed(target, value))
        flat, given = flatten({target: whole.model_dump(exclude_unset=True)}), flatten({target: value})
        return {name: each for name, each in flat.items() if name in given}
    except ValidationError as error:
        if leaf is not None:
            problems.append(leaf.complaint(value, path))
        else:
            problems += problems_of(error, GROUPS[target], value, path)
        return {}


def _targets(values: Mapping[str, Any], path: KeyPath, problems: list[Problem]) -> dict[str, str]:
    """Return the dotted path of each name; `problems` takes unknown names, and two that set the same."""
    targets: dict[str, str] = {}
    for name in values:
        target = resolve(name)
        if target is None:
            problems.append(_not_a_name("unknown setting", (*path, name), [*SETTINGS, *GROUPS], LEAVES))
            continue
        for other, known in targets.items():
            if known == target or known.startswith(f"{target}.") or target.startswith(f"{known}."):
                text = f"sets the same as {other}; keep one of the two"
                problems.append(Problem(path=(*path, name), text=text))
        targets[name] = target
    return targets


def _unknown_key(key: str, model: type[BaseModel], path: KeyPath) -> Problem:
    target = resolve(key)
    if target is not None and model is Scenario:
        text = f"not a key of a scenario; write it in base: {_as_nested(target)}"
        return Problem(path=path, text=text)
    if target is not None and model is PointSettings:
        return Problem(path=path, text=f"base takes nested keys; write {_as_nested(target)}")
    return _not_a_name("unknown key", path, model.model_fields)


def _as_nested(path: str) -> str:
    group, _, name = path.rpartition(".")
    return f"{group}: {{{name}: ...}}" if group else f"{name}: ..."


def _not_a_name(what: str, path: KeyPath, names: Iterable[str], also: Iterable[str] = ()) -> Problem:
    given, known = str(path[-1]), [*names, *also]
    right = RIGHT_NAMES.get(given.casefold(), "")
    # A single letter is like anything that has it.
    alike = nearest(given, [name for name in known if len(name) > 1], count=1)
    hint = right if right in known else next(iter(alike), "")
    return Problem(path=path, text=what, allowed=", ".join(names), hint=hint)
