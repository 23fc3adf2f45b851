"""TARGET of the commands: a scenario file, or a model with flags that make one or more points."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.catalog.gpus import DTYPES, GpuSpec, find_gpu, other_variants
from qbench.catalog.models import catalog_name
from qbench.cli.console import print_note
from qbench.errors import CatalogError, ScenarioError
from qbench.scenario.expand import MAX_POINTS, expand, point_from
from qbench.scenario.schema import Point, Scenario
from qbench.scenario.settings import SETTINGS
from qbench.units import format_bytes, parse_bytes

DEFAULT_RECIPE = (
    "Planned as a loop of your own (recipe peft, no autocast); if Trainer or TRL trains, say "
    "`--autocast bf16` with `--recipe trainer` or `--recipe trl`: they differ by gigabytes"
)
"""Said where nobody chose: most trainings are not what the default is, and README says by how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The points that a command is about, and the GPUs that were named for them."""

    points: tuple[Point, ...]
    gpus: tuple[str, ...]
    caveats: tuple[str, ...] = ()
    """What a config of another tool asks for that was not understood."""
    advice: str = ""
    """What to tell after the answer; empty where there is nothing."""


def is_scenario(target: str) -> bool:
    """Say whether TARGET is spelt as a scenario file."""
    return target.endswith((".yaml", ".yml"))


def scenario_path(target: str) -> Path:
    """Return the file of a scenario: the path itself, or a shipped one of that file name."""
    path = Path(target)
    if path.exists():
        return path
    from qbench.scenario.load import shipped_scenarios  # YAML, which a model named by its id never needs.

    shipped = {shipped.name: shipped for shipped in shipped_scenarios()}
    return shipped.get(target) or shipped.get(f"{target}.yaml", path)


def read_scenario(target: str, max_points: int) -> tuple[Scenario, tuple[Point, ...]]:
    """Return a scenario, by path or by the file name of a shipped one, and its points.

    Raises ScenarioError with all that is wrong with it; beyond `max_points` points it is refused.
    """
    if max_points < 1:
        raise ScenarioError(f"--max-points: given {max_points}; allowed: a whole number of at least 1")
    from qbench.scenario.load import load_scenario

    scenario = load_scenario(scenario_path(target), max_points)
    return scenario, expand(scenario, max_points)


def read_asked(
    name: str | None,
    config: tuple[Path | None, str],
    flags: Mapping[str, Sequence[Any]],
    gpus: Sequence[str],
    max_points: int = MAX_POINTS,
) -> Target:
    """Return the points of TARGET, or of another tool's config (file, format).

    Beside a config, TARGET is the model that stands in for the one it names, and flags change its settings.
    Raises ScenarioError where there is neither, and for a scenario beside a config.
    """
    file, form = config
    if file is None and form:
        raise ScenarioError(f"--from-format {form}: given without --from; name the file, or leave it out")
    if file is None and name is None:
        raise ScenarioError("nothing to plan: give TARGET (a scenario or a model) or --from FILE")
    if file is None:
        assert name is not None
        return read_target(name, flags, gpus, max_points)
    from qbench.scenario.importers.configs import import_config

    if is_scenario(name or ""):
        raise ScenarioError(f"--from {file}: given beside the scenario {name}; leave one of the two out")
    found = import_config(
        file, _language_config, form, name or "", next(iter(flags.get("seq_len", ())), None)
    )
    points = _points_of(found.settings, {name: values for name, values in flags.items() if values})
    return Target(points=points, gpus=tuple(gpus), caveats=found.caveats)


def _language_config(model: str) -> Mapping[str, Any]:
    """Return the config of the language part of a catalog model or a folder; empty for others."""
    from qbench.catalog.models import resolve_model

    try:
        config = resolve_model(model).config or {}
    except CatalogError:
        return {}
    dtypes = {key: config[key] for key in ("dtype", "torch_dtype") if key in config}
    return {**dtypes, **config.get("text_config", config)}


def read_target(
    target: str, flags: Mapping[str, Sequence[Any]], gpus: Sequence[str], max_points: int
) -> Target:
    """Return the points of a scenario file, or of a model and the product of its flags.

    `flags` maps a setting's short name to the values given, none for a flag that was not used. Raises
    ScenarioError when flags are given beside a scenario file, or a value is not allowed.
    """
    given = {name: values for name, values in flags.items() if values}
    if not is_scenario(target):
        advice = "" if {"recipe", "autocast"} & set(given) else DEFAULT_RECIPE
        points = _points_of({"model": catalog_name(target)}, given)
        return Target(points=points, gpus=tuple(gpus), advice=advice)
    if given:
        names = ", ".join(f"--{flag_name(name)}" for name in given)
        raise ScenarioError(
            f"flags of single points ({names}) do not go with the scenario {target}; edit its matrix"
        )
    scenario, points = read_scenario(target, max_points)
    return Target(points=points, gpus=tuple(gpus) or scenario.plan.gpus)


def _points_of(base: Mapping[str, Any], flags: Mapping[str, Sequence[Any]]) -> tuple[Point, ...]:
    _refuse_lists(flags)
    combinations = itertools.product(*([(name, value) for value in values] for name, values in flags.items()))
    try:
        points = [point_from(base, dict(chosen)) for chosen in combinations]
    except ScenarioError as error:
        raise ScenarioError(map(_as_flag, error.problems)) from error
    return tuple(dict.fromkeys(points))


def _refuse_lists(flags: Mapping[str, Sequence[Any]]) -> None:
    for name, values in flags.items():
        listed = next((value for value in values if isinstance(value, str) and "," in value), None)
        if listed is not None:
            repeated = " ".join(f"--{flag_name(name)} {value.strip()}" for value in listed.split(","))
            raise ScenarioError(f"--{flag_name(name)}: given {listed!r}; repeat the flag instead: {repeated}")


def _as_flag(problem: str) -> str:
    """Return a problem of a setting under the name of its flag."""
    setting, colon, rest = problem.partition(":")
    return problem if setting == "model" or " " in setting else f"--{flag_name(setting)}{colon}{rest}"


def flag_name(setting: str) -> str:
    """Return a setting as its flag is spelt, without the dashes."""
    flag = SETTINGS[setting].names.flag if setting in SETTINGS else ""
    return (flag or setting).replace("_", "-")


def named_cards(gpus: Sequence[str], card: tuple[str, str]) -> list[GpuSpec]:
    """Return the card that is described by (memory, compute capability), if any, and those of the catalog.

    A name that several cards of the catalog could have is told. Raises CatalogError for one that it does not
    hold.
    """
    described = [described_gpu(*card)] if any(card) else []
    tell_other_variants(gpus)
    return [*described, *(find_gpu(name) for name in gpus)]


def tell_other_variants(names: Sequence[str]) -> None:
    """Say on stderr how a name was read that several cards of the catalog could have. Raises CatalogError."""
    for name in dict.fromkeys(names):
        others = ", ".join(other.name for other in other_variants(name))
        if others:
            print_note(f"{name} is read as {find_gpu(name).name}; other cards of the catalog: {others}")


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
