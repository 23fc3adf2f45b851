"""TARGET of the commands: a scenario file, or a model with flags that make one or more points."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.catalog.gpus import DTYPES, GpuSpec
from qbench.errors import CatalogError, ScenarioError
from qbench.scenario.expand import expand, point_from
from qbench.scenario.load import load_scenario, shipped_scenarios
from qbench.scenario.schema import Point, Scenario
from qbench.units import format_bytes, parse_bytes

FLAGS = {"per_device_train_batch_size": "batch", "seq_len": "seq", "attn_implementation": "attn"}
"""Flags that are spelt shorter than the setting they stand for."""


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
    return shipped.get(target) or shipped.get(f"{target}.yaml", path)


def read_scenario(target: str, max_points: int) -> tuple[Scenario, tuple[Point, ...]]:
    """Return a scenario, by path or by the file name of a shipped one, and its points.

    Raises ScenarioError with all that is wrong with it; beyond `max_points` points it is refused.
    """
    if max_points < 1:
        raise ScenarioError(f"--max-points: given {max_points}; allowed: a whole number of at least 1")
    scenario = load_scenario(scenario_path(target), max_points)
    return scenario, expand(scenario, max_points)


def read_target(
    target: str, flags: Mapping[str, Sequence[Any]], gpus: Sequence[str], max_points: int
) -> Target:
    """Return the points of a scenario file, or of a model and the product of its flags.

    `flags` maps a setting's short name to the values given, none for a flag that was not used. Raises
    ScenarioError when flags are given beside a scenario file, or a value is not allowed.
    """
    given = {name: values for name, values in flags.items() if values}
    if not is_scenario(target):
        return Target(points=_points_of_model(target, given), gpus=tuple(gpus))
    if given:
        names = ", ".join(f"--{_flag(name)}" for name in given)
        raise ScenarioError(
            f"flags of single points ({names}) do not go with the scenario {target}; edit its matrix"
        )
    scenario, points = read_scenario(target, max_points)
    return Target(points=points, gpus=tuple(gpus) or scenario.plan.gpus)


def _points_of_model(model: str, flags: Mapping[str, Sequence[Any]]) -> tuple[Point, ...]:
    combinations = itertools.product(*([(name, value) for value in values] for name, values in flags.items()))
    try:
        points = [point_from({"model": model}, dict(chosen)) for chosen in combinations]
    except ScenarioError as error:
        raise ScenarioError(map(_as_flag, error.problems)) from error
    return tuple(dict.fromkeys(points))


def _as_flag(problem: str) -> str:
    """Return a problem of a setting under the name of its flag."""
    setting, colon, rest = problem.partition(":")
    return problem if setting == "model" or " " in setting else f"--{_flag(setting)}{colon}{rest}"


def _flag(setting: str) -> str:
    return FLAGS.get(setting, setting.replace("_", "-"))


def described_gpu(memory: str, compute_capability: str) -> GpuSpec:
    """Return a card that is not in the catalog, from its memory ('24GiB') and compute capability ('8.9').

    Its speed is not known. Raises CatalogError when one of the two is missing or is not what it should be.
    """
    if not memory or not compute_capability:
        raise CatalogError(
            "--gpu-memory and --compute-capability describe a card together; give both, or take --gpu"
        )
    try:
        memory_bytes = parse_bytes(memory)
    except ValueError as error:
        raise CatalogError(f"--gpu-memory: {error}") from error
    match = re.fullmatch(r"(\d{1,2})\.(\d)", compute_capability)
    if match is None:
        raise CatalogError(
            f"--compute-capability: {compute_capability!r} is none; write major and minor number, such as 8.9"
        )
    return GpuSpec(
        name=f"{format_bytes(memory_bytes)} card",
        aliases=(),
        vendor="NVIDIA",
        architecture="",
        compute_capability=(int(match.group(1)), int(match.group(2))),
        nominal_gb=round(memory_bytes / 1e9),
        memory_bytes=memory_bytes,
        memory_basis="given",
        memory_source="given",
        memory_bandwidth_bytes_per_s=math.nan,
        peak_flops=dict.fromkeys(DTYPES),
        tdp_w=math.nan,
        release_year=0,
        source="given",
        notes="",
    )
