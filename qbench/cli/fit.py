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

    from qbench.planner.fit import Largest


@with_setting_flags(precision=", ".join(FIT_PRECISIONS))
def fit_command(
    target: options.TargetName = None,
    from_file: options.FromFile = None,
    from_format: options.FromFormat = "",
    gpu: options.Gpu = None,
    gpu_memory: options.GpuMemory = "",
    compute_capability: options.ComputeCapability = "",
    vary: Annotated[str, typer.Option(help="Setting to maximize: seq, batch or r.")] = "seq",
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

    setting = varied(vary)
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
    if setting in request.settings:
        raise QbenchError(
            f"--{flag_of(setting)} conflicts with --vary {vary}, because fit searches for it; omit "
            f"--{flag_of(setting)} or vary another setting"
        )
    asked = read_asked(request)
    asked.print_caveats()
    cards = asked.cards()
    if not cards:
        raise QbenchError("no card to fit: give --gpu NAME (see qbench gpus), or --gpu-memory 24GiB")
    search = FitFor(gpus=tuple(cards), setting=setting, step=step, alloc_conf=alloc_conf, cache=use_cache)
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
