"""TARGET of the commands: a scenario file, or a model with flags that make one or more points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.errors import QbenchError, ScenarioError
from qbench.scenario.expand import MAX_POINTS, expand, point_from
from qbench.scenario.load import load_scenario, shipped_scenarios
from qbench.scenario.schema import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The points that a command is about, and the GPUs that were named for them."""

    points: tuple[Point, ...]
    gpus: tuple[str, ...]


def is_scenario(target: str) -> bool:
    """Say whether TARGET is spelt as a scenario file."""
    return target.endswith((".yaml", ".yml"))


def scenario_path(target: str) -> Path:
    """Return the file of a scenario: the path itself, or a shipped one of that file name."""
    path = Path(target)
    if path.exists():
        return path
    shipped = {shipped.name: shipped for shipped in shipped_scenarios()}
    return shipped.get(target, path)


def read_target(
    target: str, flags: Mapping[str, Sequence[Any]], gpus: Sequence[str], max_points: int = MAX_POINTS
) -> Target:
    """Return the points of a scenario file, or of a model and the product of its flags.

    `flags` maps a setting's short name to the values given, none for a flag that was not used. Raises
    ScenarioError when flags are given beside a scenario file, or a value is not allowed.
    """
    given = {name: values for name, values in flags.items() if values}
    if not is_scenario(target):
        return Target(points=_points_of_model(target, given), gpus=tuple(gpus))
    if given:
        raise ScenarioError(
            f"flags for single points ({', '.join(given)}) do not go with the scenario {target}; edit its matrix"
        )
    scenario = load_scenario(scenario_path(target), max_points)
    return Target(points=expand(scenario, max_points), gpus=tuple(gpus) or scenario.plan.gpus)


def _points_of_model(model: str, flags: Mapping[str, Sequence[Any]]) -> tuple[Point, ...]:
    import itertools

    combinations = itertools.product(*([(name, value) for value in values] for name, values in flags.items()))
    points = [point_from({"model": model}, dict(chosen)) for chosen in combinations]
    return tuple(dict.fromkeys(points))


def first_line(error: QbenchError) -> str:
    """Return the first line of an error's text."""
    return str(error).splitlines()[0]
