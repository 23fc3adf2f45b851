"""`qbench fit`: the largest sequence, batch or rank that a card holds."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_note, print_table, print_text
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qbench.catalog.gpus import GpuSpec
    from qbench.cli.target import Target
    from qbench.plan.fit import Largest, Planner, Varied
    from qbench.plan.relief import Relief
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
    from qbench.plan.fit import axis_of, largest, with_value

    axes = [axis_of(point, setting, step) for point in points]
    # Points that differ in the varied setting only are one question.
    asked = {with_value(point, setting, 1): axis for point, axis in zip(points, axes, strict=True)}
    return [largest(point, axis, planner(gpu)) for point, axis in asked.items() for gpu in cards]


def _planner(alloc_conf: str, use_cache: bool, gpu: GpuSpec) -> Planner:
    from qbench.measure.known_speed import usable_calibrations
    from qbench.memory.allocator import AllocatorConfig
    from qbench.planning import PlanFor, plans
    from qbench.records.plan_cache import PlanCache

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
    from qbench.report.tables import Column, Table

    axis = found[0].axis
    columns = (
        Column("GPU"),
        Column("Point"),
        Column(f"Largest {axis.setting}", "count"),
        Column("Bound by"),
        Column("Headroom", "bytes"),
        Column("Fills the card"),
        Column("Cheapest change"),
    )
    print_table(Table(columns=columns, rows=tuple(map(_row, found)), notes=tuple(_notes(found))))
    for largest in found:
        _print_changes(largest)


def _row(found: Largest) -> tuple[Any, ...]:
    fit = found.record.detail["fits"][0]
    label = found.record.point.label
    bound = "nothing fits" if found.value is None else found.limited_by
    cheapest = next((relief for relief in found.reliefs if relief.fits), None)
    change = "none alone is enough" if found.reliefs else ""
    if cheapest is not None:
        change = _change_text(cheapest)
    headroom = fit["headroom_bytes"]
    return fit["gpu"], label, found.value, bound, headroom, _fills_text(found), change


def _change_text(relief: Relief) -> str:
    return ", ".join(
        f"{name} {'LoRA' if name == 'lora' else value}" for name, value in relief.changes.items()
    )


def _fills_text(found: Largest) -> str:
    total = sum(found.fills.values())
    return ", ".join(f"{name} {100 * size / total:.0f} %" for name, size in list(found.fills.items())[:3])


def _notes(found: Sequence[Largest]) -> list[str]:
    axis = found[0].axis
    notes = [
        f"{axis.setting} in steps of {axis.step}; one step above each answer was planned and does not fit, "
        "unless another limit comes first."
    ]
    if any(largest.limited_by != "memory" for largest in found):
        notes.append(f"Not memory but the limit ends the search: {axis.why}.")
    notes += [
        f"{largest.record.point.label}: not monotone, a value below the answer does not fit; see --json."
        for largest in found
        if not largest.is_monotone
    ]
    retried = [largest for largest in found if _after_retries(largest)]
    if retried:
        labels = ", ".join(largest.record.point.label for largest in retried)
        notes.append(
            f"{labels}: fits only after PyTorch has emptied its cache, which takes time;"
            " the headroom is what is free then."
        )
    return notes


def _after_retries(found: Largest) -> bool:
    verdict = found.record.detail["fits"][0]["verdict"]
    return found.value is not None and str(verdict).startswith("ok after")


def _print_changes(found: Largest) -> None:
    from qbench.units import format_bytes

    if not found.reliefs:
        return
    step = found.axis.step * (1 + (found.value or 0) // found.axis.step)
    fit = found.record.detail["fits"][0]
    print_text(f"{fit['gpu']}, {found.record.point.label}: at {found.axis.setting} {step:,}, cheapest first:")
    for relief in found.reliefs:
        held = "fits" if relief.fits else "not enough"
        ratio = "" if relief.step_time_ratio is None else f", step time x {relief.step_time_ratio:.2f}"
        freed = format_bytes(relief.freed_bytes)
        text = f"{_change_text(relief)}: reserves {freed} less, {held}{ratio}; {relief.cost}"
        print_text(f"  {text}")
    if found.grows is not None and found.grows_bytes is not None:
        grown = f"{format_bytes(found.grows_bytes)} for {found.axis.step} more of {found.axis.setting}"
        print_text(f"  what grows: {found.grows}, {grown}")
