"""`qbench fit`: the largest sequence, batch or rank that a card holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli import options
from qbench.cli.console import print_error, print_json, print_note, print_text
from qbench.cli.progress import shown_steps
from qbench.cli.setting_flags import values_of, with_setting_flags
from qbench.errors import QbenchError
from qbench.runs.sizing import FIT_PRECISIONS, FitFor, fits, varied
from qbench.scenario.settings import flag_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qbench.catalog.gpus import GpuSpec
    from qbench.cli.target import Target
    from qbench.planner.fit import Largest


@with_setting_flags(precision=", ".join(FIT_PRECISIONS))
def fit_command(
    target: options.TargetName = None,
    from_file: options.FromFile = None,
    from_format: options.FromFormat = "",
    gpu: options.Gpu = None,
    gpu_memory: options.GpuMemory = "",
    compute_capability: options.ComputeCapability = "",
    vary: Annotated[
        str,
        typer.Option(help="Setting to maximize: seq, batch or r; gpus finds the fewest that fit."),
    ] = "seq",
    step: Annotated[
        int | None,
        typer.Option(help="Only try multiples of this; default 64 for seq, 1 for batch and r."),
    ] = None,
    alloc_conf: options.AllocConf = "",
    use_cache: options.UseCache = True,
    as_json: options.AsJson = False,
    **settings: Any,
) -> int:
    """Find the largest sequence, batch or rank that fits on a GPU.

    Reports what fills the card there and which changes would free memory. The value one step above the answer
    is planned too and does not fit. Without --precision, bf16, nf4 and nf4-dq are tried.
    """
    from qbench.cli.target import TargetRequest, read_asked

    several = vary == "gpus"
    strategies = _strategies(settings, from_file is not None) if several else []
    setting = varied("seq" if several else vary)
    request = TargetRequest(
        name=target,
        config=from_file,
        config_format=from_format,
        settings=values_of(settings),
        precisions=FIT_PRECISIONS,
        gpus=tuple(gpu or ()),
        gpu_memory=gpu_memory,
        compute_capability=compute_capability,
    )
    if setting in request.settings and not several:
        raise QbenchError(
            f"--{flag_of(setting)} conflicts with --vary {vary}, because fit searches for it; omit "
            f"--{flag_of(setting)} or vary another setting"
        )
    asked = read_asked(request)
    asked.print_caveats()
    cards = asked.cards()
    if not cards:
        raise QbenchError("no GPU given: use --gpu NAME (see qbench gpus), or --gpu-memory 24GiB")
    if several:
        return _print_fewest(asked, strategies, cards, alloc_conf, as_json, use_cache)
    search = FitFor(gpus=tuple(cards), setting=setting, step=step, alloc_conf=alloc_conf, cache=use_cache)
    return _print_largest(asked, search, as_json)


def _print_largest(asked: Target, search: FitFor, as_json: bool) -> int:
    with shown_steps() as watch:
        planned, failed = fits(asked.points, search, watch)
    found = [replace(largest, record=asked.judged(largest.record)) for largest in planned]
    for name, why in failed.items():
        print_error(f"{name}: {why}")
    if as_json:
        print_json({"fits": [_document(largest) for largest in found]})
    else:
        _print(found)
    if asked.advice:
        print_note(asked.advice)
    return 0 if any(fit.fits for largest in found for fit in largest.record.fits) else 1


def _strategies(settings: dict[str, Any], has_file: bool) -> list[str]:
    """Take the strategies out of the flags. Raises QbenchError without one, and for a number of GPUs."""
    if settings.pop("gpus", None):
        raise QbenchError("--gpus conflicts with --vary gpus, because fit searches for it; omit --gpus")
    strategies = settings.pop("strategy", None)
    if not strategies:
        raise QbenchError("--vary gpus: needs --strategy; give fsdp2, zero3 or another")
    if has_file:
        settings["gpus"] = ["1"]  # A file that shards needs some number, and the search begins here.
    return list(strategies)


def _print_fewest(
    asked: Target,
    strategies: list[str],
    cards: list[GpuSpec],
    alloc_conf: str,
    as_json: bool,
    use_cache: bool,
) -> int:
    from qbench.runs.fewest_gpus import fewest_gpus
    from qbench.words.fewest_gpus import fewest_lines

    found = fewest_gpus(asked.points, strategies, cards, alloc_conf, use_cache)
    judged = [replace(one, records=tuple(asked.judged(record) for record in one.records)) for one in found]
    if as_json:
        print_json(
            {
                "fewest_gpus": [
                    {"gpu": one.gpu, "gpus": one.gpus, "records": [each.to_dict() for each in one.records]}
                    for one in judged
                ]
            }
        )
    else:
        print_text("\n".join(fewest_lines([(one.gpu, one.gpus, one.records) for one in judged])))
    return 0 if any(one.gpus is not None for one in judged) else 1


def _document(found: Largest) -> dict[str, Any]:
    """Return what was found as JSON values, the point at the answer in it."""
    (fit,) = found.record.fits
    return {
        "point": found.record.point.model_dump(mode="json"),
        **asdict(found.axis),
        "largest": found.value,
        "bound_by": found.limited_by,
        "is_monotone": found.is_monotone,
        "fit": fit.to_values(),
        "above": None if found.above is None else asdict(found.above),
        "peak_allocated_bytes": found.record.peak_allocated_bytes,
        "peak_reserved_bytes": found.record.peak_reserved_bytes,
        "fills_bytes": found.fills,
        "grows": found.grows,
        "grows_bytes_per_step": found.grows_bytes,
        "changes": [asdict(relief) for relief in found.reliefs],
        "probes": [asdict(probe) for probe in found.probes],
        "caveats": list(found.record.caveats),
        "unmodelled": fit.unmodelled or [],
    }


def _print(found: Sequence[Largest]) -> None:
    from qbench.cli.fit_text import fit_lines
    from qbench.report.terminal.table import line_width

    print_text("\n".join(fit_lines(found, line_width())))
