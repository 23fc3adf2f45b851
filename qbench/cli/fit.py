"""`qbench fit`: the largest sequence, batch or rank that a card holds."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import asdict
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli import options
from qbench.cli.console import print_error, print_json, print_note, print_text
from qbench.errors import QbenchError, StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qbench.catalog.gpus import GpuSpec
    from qbench.cli.target import Target
    from qbench.planner.fit import Largest, Planner, Varied
    from qbench.records.record import Record
    from qbench.scenario.schema import Point

PRECISIONS = ("bf16", "nf4", "nf4-dq")
"""Asked about where neither a flag nor a scenario names precisions: LoRA and both usual forms of QLoRA."""


class VariedName(str, Enum):
    """The setting to make as large as fits."""

    seq_len = "seq_len"
    batch = "batch"
    r = "r"


_SETTINGS: dict[VariedName, Varied] = {
    VariedName.seq_len: "seq_len",
    VariedName.batch: "per_device_train_batch_size",
    VariedName.r: "r",
}


def fit_command(
    context: typer.Context,
    target: options.TargetName = None,
    from_file: options.FromFile = None,
    from_format: options.FromFormat = "",
    gpu: options.Gpu = None,
    gpu_memory: options.GpuMemory = "",
    compute_capability: options.ComputeCapability = "",
    vary: Annotated[VariedName, typer.Option(help="What to make as large as fits.")] = VariedName.seq_len,
    step: Annotated[
        int | None,
        typer.Option(help="Look at multiples of this only; default 64 for seq_len, 1 for batch and r."),
    ] = None,
    precision: options.Precision = None,
    r: options.Rank = None,
    target_modules: options.TargetModules = None,
    lora_dropout: options.LoraDropout = None,
    batch: options.Batch = None,
    seq: options.Seq = None,
    gradient_checkpointing: options.Checkpointing = None,
    optim: options.Optim = None,
    autocast: options.Autocast = None,
    recipe: options.Recipe = None,
    attn: options.Attn = None,
    alloc_conf: options.AllocConf = "",
    use_cache: options.UseCache = True,
    as_json: options.AsJson = False,
) -> int:
    """Find the largest sequence, batch or rank that a card holds.

    It says what fills the card there and which change would free memory. Exact to the step: the value one
    step above was planned too and does not fit. Without --precision it asks for bf16, nf4 and nf4-dq.
    """
    from qbench.cli.target import named_cards

    flags = options.step_flags(context.params)
    card = (gpu_memory, compute_capability)
    asked = _asked(target, (from_file, from_format), flags, gpu or [], _SETTINGS[vary])
    for caveat in asked.caveats:
        print_note(f"{from_file}: {caveat}")
    cards = named_cards(asked.gpus, card)
    if not cards:
        raise QbenchError("no card to fit: give --gpu NAME (see qbench gpus), or --gpu-memory 24GiB")
    planner = partial(_planner, alloc_conf, use_cache)
    found = _found(asked.points, cards, _SETTINGS[vary], step, planner)
    if as_json:
        print_json({"fits": [_document(largest) for largest in found]})
    else:
        _print(found)
    if asked.advice:
        print_note(asked.advice)
    return 0 if any(largest.value is not None for largest in found) else 1


def _asked(
    name: str | None,
    config: tuple[Path | None, str],
    flags: dict[str, Sequence[Any]],
    gpus: list[str],
    setting: Varied,
) -> Target:
    from qbench.cli.target import flag_name, is_scenario, read_asked

    if setting in flags:
        raise QbenchError(
            f"--{flag_name(setting)}: given, but it is what is to be found; leave it out or --vary another"
        )
    if "precision" not in flags and config[0] is None and not is_scenario(name or ""):
        flags = {**flags, "precision": PRECISIONS}
    return read_asked(name, config, flags, gpus)


def _found(
    points: Sequence[Point],
    cards: list[GpuSpec],
    setting: Varied,
    step: int | None,
    planner: Callable[[GpuSpec], Planner],
) -> list[Largest]:
    from qbench.planner.fit import axis_of, largest, with_value

    axes = [axis_of(point, setting, step) for point in points]
    # Points that differ in the varied setting only are one question.
    asked = {with_value(point, setting, 1): axis for point, axis in zip(points, axes, strict=True)}
    found: list[Largest] = []
    failed: dict[str, StepError] = {}
    for (point, axis), gpu in itertools.product(asked.items(), cards):
        try:
            found.append(largest(point, axis, planner(gpu)))
        except StepError as error:
            failed[f"{gpu.name}, {point.precision}"] = error
    if failed and not found:
        raise next(iter(failed.values()))
    for name, why in failed.items():
        print_error(f"{name}: {why}")
    return found


def _planner(alloc_conf: str, use_cache: bool, gpu: GpuSpec) -> Planner:
    from qbench.measure.known_speed import usable_calibrations
    from qbench.memory.allocator.caching import AllocatorConfig
    from qbench.records.plan_cache import PlanCache
    from qbench.runs.plans import PlanFor, plans

    AllocatorConfig.from_env_text(alloc_conf)
    settings = PlanFor(gpus=(gpu,), alloc_conf=alloc_conf, calibrations=usable_calibrations("cuda"))
    cache = PlanCache() if use_cache else None

    def planned(points: Sequence[Point]) -> list[Record]:
        return plans(points, settings, cache)

    return planned


def _document(found: Largest) -> dict[str, Any]:
    """Return what was found as JSON values, the point at the answer in it."""
    fit = found.record.detail["fits"][0]
    return {
        "point": found.record.point.model_dump(mode="json"),
        **asdict(found.axis),
        "largest": found.value,
        "bound_by": found.limited_by,
        "is_monotone": found.is_monotone,
        "fit": fit,
        "above": None if found.above is None else asdict(found.above),
        "peak_allocated_bytes": found.record.metrics["peak_allocated_bytes"],
        "peak_reserved_bytes": found.record.metrics["peak_reserved_bytes"],
        "fills_bytes": found.fills,
        "grows": found.grows,
        "grows_bytes_per_step": found.grows_bytes,
        "changes": [asdict(relief) for relief in found.reliefs],
        "probes": [asdict(probe) for probe in found.probes],
        "caveats": found.record.detail["caveats"],
    }


def _print(found: Sequence[Largest]) -> None:
    from qbench.cli.fit_text import fit_lines
    from qbench.report.terminal.table import WIDTH

    # A pipe has no width: WIDTH.
    columns = shutil.get_terminal_size((WIDTH, 24)).columns
    print_text("\n".join(fit_lines(found, min(WIDTH, columns))))
