"""TARGET of the commands: a scenario file, or a model with flags that make one or more points."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from qbench.catalog.gpus import DTYPES, GpuSpec, find_gpu, other_variants
from qbench.catalog.models import catalog_name
from qbench.cli.console import print_note
from qbench.errors import CatalogError, Problem, ScenarioError
from qbench.records.record import Record, with_left_out
from qbench.runs.usual import language_config, with_usual
from qbench.scenario.expand import MAX_POINTS, point_from
from qbench.scenario.importers.keys import Effect
from qbench.scenario.schema import Point, Scenario
from qbench.scenario.settings import SETTINGS, flag_of
from qbench.units import format_bytes, parse_bytes

DEFAULT_RECIPE = (
    "Planned for a training loop of your own (recipe peft, no autocast). If you use TRL, add `--recipe trl`; "
    "if you use Trainer, `--recipe trainer --autocast bf16`: the results differ by gigabytes"
)
"""Printed when no recipe was chosen, since most trainings are not the default; README has the differences."""


NO_DROPOUT = "The model has experts, which peft adapts only without dropout: planned with --lora-dropout 0"
DEFAULT_CAPABILITY = "8.9"
"""Compute capability of a described card, unless given: that of the most common cards with 24 GiB or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRequest:
    """What a command line says about the steps to plan and the cards to plan for."""

    name: str | None
    """TARGET: a scenario file, or a model."""
    config: Path | None = None
    """File of --from; TARGET then replaces the model it names."""
    config_format: str = ""
    settings: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values of each flag by the name of its setting."""
    precisions: tuple[str, ...] = ()
    """Precisions to plan where neither flag, config nor scenario names one; empty for the default."""
    gpus: tuple[str, ...] = ()
    gpu_memory: str = ""
    compute_capability: str = ""
    max_points: int = MAX_POINTS

    @property
    def describes_card(self) -> bool:
        """Whether a card outside the catalog is described."""
        return bool(self.gpu_memory or self.compute_capability)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The points that a command is about, and the GPUs to check them against."""

    points: tuple[Point, ...]
    request: TargetRequest
    gpus: tuple[str, ...]
    """Names in the catalog: those of the request, else those of the scenario."""
    caveats: tuple[str, ...] = ()
    """What of another tool's config was not understood."""
    unmodelled: Mapping[str, Effect] = field(default_factory=dict)
    """Keys of that config that affect memory and are not in the plan."""
    advice: str = ""
    """What to print after the answer; empty where there is nothing."""

    def print_caveats(self) -> None:
        """Print the caveats of a config on stderr."""
        for caveat in self.caveats:
            print_note(f"{self.request.config}: {caveat}")
        if more := [key for key, effect in self.unmodelled.items() if effect != "less"]:
            keys = ", ".join(more)
            print_note(
                f"{self.request.config}: what fits is not certain: {keys} may need more than is planned"
            )

    def judged(self, record: Record) -> Record:
        """Return a plan with what was not understood of a config; its verdicts claim no more than that."""
        return with_left_out(record, self.caveats, self.unmodelled)

    def cards(self) -> list[GpuSpec]:
        """Return the described card, if any, and those named of the catalog; how a short name is read goes to
        stderr. Raises CatalogError for a name that the catalog does not hold."""
        request = self.request
        cards = []
        if request.describes_card:
            capability = request.compute_capability or DEFAULT_CAPABILITY
            card = described_gpu(request.gpu_memory, capability)
            if not request.compute_capability:
                print_note(
                    f"{card.name}: assuming compute capability {capability} (Ada); for another give "
                    "--compute-capability, for example 8.0 (A100), 9.0 (H100), 7.5 (T4)"
                )
            cards.append(card)
        tell_other_variants(self.gpus)
        return [*cards, *map(find_gpu, self.gpus)]


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
    from qbench.scenario import load

    file = scenario_path(target)
    try:
        return load.read_scenario(file, max_points)
    except ScenarioError:
        _refuse_config(file)
        raise


def _refuse_config(file: Path) -> None:
    """Raise ScenarioError where a file that is no scenario is a config of a training tool."""
    from qbench.scenario.importers.configs import tool_of
    from qbench.scenario.load import load_mapping

    try:
        values = load_mapping(file)
    except ScenarioError:
        return
    if not {"base", "question", "matrix"} & values.keys() and (tool := tool_of(values)):
        raise ScenarioError(f"{file}: a config of {tool}, not a scenario; read it with --from {file}")


def read_asked(request: TargetRequest) -> Target:
    """Return the points of TARGET, or of another tool's config.

    Beside a config, TARGET is the model that stands in for the one it names, and flags change its settings.
    Raises ScenarioError where there is neither, and for a scenario beside a config.
    """
    file, form, name = request.config, request.config_format, request.name
    if file is None and form:
        raise ScenarioError(f"--from-format {form}: needs --from; name the file, or omit it")
    if file is None and name is None:
        raise ScenarioError("nothing to plan: give TARGET (a scenario or a model) or --from FILE")
    if file is None:
        return _of_scenario(request) if is_scenario(name or "") else _of_model(request)
    from qbench.scenario.importers.configs import import_config

    if is_scenario(name or ""):
        raise ScenarioError(f"--from {file}: conflicts with the scenario {name}; omit one of the two")
    seq_len = next(iter(request.settings.get("seq_len", ())), None)
    found = import_config(file, language_config, form, name or "", seq_len)
    if "distributed" in found.settings and not request.settings.get("gpus"):
        raise ScenarioError(
            f"{file}: trains on several GPUs ({found.settings['distributed']['strategy']}) and does not say "
            "how many; add --gpus N"
        )
    points = _points_of(found.settings, request.settings)
    return Target(
        points=points,
        request=request,
        gpus=request.gpus,
        caveats=found.caveats,
        unmodelled=found.unmodelled,
    )


def _of_model(request: TargetRequest) -> Target:
    """Return the product of the flags."""
    settings = dict(request.settings)
    if request.precisions:
        settings.setdefault("precision", request.precisions)
    points = _points_of({"model": catalog_name(request.name or "")}, settings)
    if points[0].lora is not None and points[0].lora.lora_dropout == 0 and "lora_dropout" not in settings:
        print_note(NO_DROPOUT)
    advice = "" if {"recipe", "autocast"} & set(settings) else DEFAULT_RECIPE
    return Target(points=points, request=request, gpus=request.gpus, advice=advice)


def _of_scenario(request: TargetRequest) -> Target:
    """Return the points of a scenario file. Raises ScenarioError when flags are given beside it."""
    if request.settings:
        names = ", ".join(f"--{flag_of(name)}" for name in request.settings)
        raise ScenarioError(
            f"flags of single points ({names}) conflict with the scenario {request.name}; edit its matrix"
        )
    scenario, points = read_scenario(request.name or "", request.max_points)
    return Target(points=points, request=request, gpus=request.gpus or scenario.plan.gpus)


def _points_of(base: Mapping[str, Any], flags: Mapping[str, Sequence[Any]]) -> tuple[Point, ...]:
    _refuse_lists(flags)
    combinations = itertools.product(*([(name, value) for value in values] for name, values in flags.items()))
    try:
        follow = partial(with_usual, base["model"]) if base.keys() == {"model"} else dict
        points = [point_from(base, follow(dict(chosen))) for chosen in combinations]
    except ScenarioError as error:
        raise ScenarioError(map(_as_flag, error.problems)) from error
    return tuple(dict.fromkeys(points))


def _refuse_lists(flags: Mapping[str, Sequence[Any]]) -> None:
    for name, values in flags.items():
        listed = next((value for value in values if isinstance(value, str) and "," in value), None)
        if listed is None:
            continue
        flag, parts = f"--{flag_of(name)}", [value.strip() for value in listed.split(",")]
        way_out = f"repeat the flag instead: {' '.join(f'{flag} {part}' for part in parts)}"
        if SETTINGS[name].kind == "integer" and re.fullmatch(r"\d{1,3}(,\d{3})+", listed):
            way_out = f"write {''.join(parts)}, or repeat the flag for several values"
        raise ScenarioError(f"{flag}: given {listed!r}; {way_out}")


def _as_flag(problem: Problem) -> Problem:
    """Return a problem of a setting under the name of its flag."""
    flag = f"--{flag_of(str(problem.path[0]))}" if len(problem.path) == 1 else ""
    return problem if flag in ("", "--model") else replace(problem, path=(flag,))


def tell_other_variants(names: Sequence[str]) -> None:
    """Say on stderr how a name was read that several cards of the catalog could have. Raises CatalogError."""
    for name in dict.fromkeys(names):
        others = ", ".join(other.name for other in other_variants(name))
        if others:
            print_note(f"{name} is read as {find_gpu(name).name}; other cards of the catalog: {others}")


def described_gpu(memory: str, compute_capability: str) -> GpuSpec:
    """Return a card that is not in the catalog, from its memory ('24GiB', '24GB') and capability ('8.9').

    Its speed is not known. Raises CatalogError when the memory is missing or one is not what it should be.
    """
    if not memory:
        raise CatalogError("--compute-capability describes a card only with --gpu-memory; give that too")
    try:
        # Cards are sold by the GB, and have as many GiB.
        memory_bytes = parse_bytes(re.sub(r"(?i)(?<=[\d ])(gb?)?\s*$", "GiB", memory.rstrip()))
    except ValueError as error:
        raise CatalogError(f"--gpu-memory: {error}") from error
    match = re.fullmatch(r"(\d{1,2})\.(\d)", compute_capability)
    if match is None:
        raise CatalogError(
            f"--compute-capability: given {compute_capability!r}; allowed: major.minor, such as 8.9"
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
