"""`qbench rank`: what a training costs on each card, in hours, money and energy."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli import options
from qbench.cli.console import print_json, print_note, print_sentence, print_table
from qbench.cli.progress import shown_steps
from qbench.cli.rank_notes import NO_SHARDING, NOTES, close_note, gpus_note, left_note, notes, source_text
from qbench.cli.setting_flags import values_of, with_setting_flags
from qbench.errors import QbenchError
from qbench.runs.sizing import RANK_PRECISIONS, RankFor, ranks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qbench.catalog.gpus import GpuSpec
    from qbench.catalog.hourly_prices import HourlyPrice
    from qbench.planner.ranking import Ranked
    from qbench.planner.workload import Workload
    from qbench.records.fits import Fit
    from qbench.scenario.importers.keys import Effect
    from qbench.scenario.schema import Point


MOST_ROWS = 10
"""Number of cards listed without --all."""


class SortName(str, Enum):
    """Sort the cards by this, least first."""

    cost = "cost"
    time = "time"
    energy = "energy"


Tokens = Annotated[str, typer.Option(help="Tokens of the dataset, for example 10M.")]
Lengths = Annotated[
    Path | None, typer.Option(help="Tokens of each sequence, one number per line, instead of --tokens.")
]
Packing = Annotated[bool, typer.Option(help="Pack sequences into full rows, instead of padding each batch.")]
Epochs = Annotated[float, typer.Option(help="Number of passes over the dataset.")]
Sort = Annotated[SortName, typer.Option(help="Sort the cards by this, least first.")]
Spot = Annotated[bool, typer.Option(help="Sort by the price of spot instances.")]
Prices = Annotated[
    Path | None,
    typer.Option(
        help="CSV of prices that replace the catalog's: gpu,usd_per_hour[,spot_usd_per_hour], or a price "
        "list of SkyPilot (vms.csv) or dstack (gpuhunt)."
    ),
]
NumGpus = Annotated[
    int, typer.Option(help="Number of GPUs that share the batches; communication is not modelled.")
]


@with_setting_flags(precision="bf16 where it fits, else nf4")
def rank_command(
    target: options.TargetName = None,
    from_file: options.FromFile = None,
    from_format: options.FromFormat = "",
    tokens: Tokens = "",
    lengths: Lengths = None,
    packing: Packing = False,
    epochs: Epochs = 1.0,
    sort: Sort = SortName.cost,
    spot: Spot = False,
    prices: Prices = None,
    num_gpus: NumGpus = 1,
    gpu: options.Gpu = None,
    show_all: Annotated[bool, typer.Option("--all", help="List every card instead of the best ten.")] = False,
    as_json: options.AsJson = False,
    **settings: Any,
) -> int:
    """Rank the GPUs of the catalog for a training run by cost, time or energy.

    Each card is listed with the first precision that fits: bf16 (LoRA), then nf4 (QLoRA), or those you give.
    """
    from qbench.cli.target import TargetRequest, read_asked

    request = TargetRequest(
        name=target,
        config=from_file,
        config_format=from_format,
        settings=values_of(settings),
        precisions=RANK_PRECISIONS,
        gpus=tuple(gpu or ()),
    )
    asked = read_asked(request)
    if len({point.model for point in asked.points}) > 1:
        raise QbenchError("several models given; allowed: one, whose cards are to be ranked")
    asked.print_caveats()
    cards = _cards(asked.gpus)
    training = RankFor(
        gpus=tuple(cards),
        **_dataset(tokens, lengths, packing),
        packing=packing,
        epochs=epochs,
        prices=_hourly_prices(cards, prices, must=bool(gpu) and sort is SortName.cost),
        num_gpus=num_gpus,
    )
    most_gpus = max(num_gpus * point.num_gpus for point in asked.points)
    key = "spot" if spot and sort is SortName.cost else sort.value
    workloads = training.workloads(asked.points)
    with shown_steps() as watch:
        rows = ranks(asked.points, training, watch)
    if as_json:
        print_json(_document(rows, key, workloads, replace(training, num_gpus=most_gpus), asked.unmodelled))
    else:
        _print(rows, key, workloads, most_gpus, None if show_all else MOST_ROWS)
        _print_left_out(rows, asked.unmodelled)
    if asked.advice:
        print_note(asked.advice)
    return 0 if any(_judged(row, asked.unmodelled).fits for row in rows) else 1


def _print_left_out(rows: Sequence[Ranked], unmodelled: Mapping[str, Effect]) -> None:
    if any(_judged(row, unmodelled).unmodelled for row in rows):
        left = ", ".join(sorted(unmodelled))
        print_sentence(f"unknown: rows are for the step as planned, which leaves out {left}.")


def _judged(row: Ranked, unmodelled: Mapping[str, Effect]) -> Fit:
    from qbench.records.fits import with_unmodelled

    return with_unmodelled(row.fit, unmodelled)


def _dataset(tokens: str, lengths: Path | None, packing: bool) -> dict[str, Any]:
    """Return how much there is to train on, as RankFor takes it."""
    from qbench.planner.workload import parse_tokens, read_lengths

    if bool(tokens) == (lengths is not None):
        raise QbenchError(
            "give either --tokens (for example 10M) or --lengths FILE to say how much to train on"
        )
    if lengths is not None:
        return {"lengths": tuple(read_lengths(lengths))}
    if packing:
        raise QbenchError("--packing: given without --lengths; --tokens are always in full sequences")
    return {"tokens": parse_tokens(tokens)}


def _cards(names: Sequence[str]) -> list[GpuSpec]:
    from qbench.catalog.gpus import find_gpu, gpus

    return list(dict.fromkeys(map(find_gpu, names))) if names else list(gpus())


def _hourly_prices(cards: Sequence[GpuSpec], file: Path | None, must: bool) -> dict[str, HourlyPrice]:
    from qbench.catalog.hourly_prices import catalog_hourly_prices, read_hourly_prices

    names = [card.name for card in cards]
    prices = catalog_hourly_prices(names) | ({} if file is None else read_hourly_prices(file))
    missing = [name for name in names if name not in prices]
    if must and missing:
        raise QbenchError(
            f"no price is known for {', '.join(missing)}; give it in a file (--prices), or --sort time"
        )
    return prices


def _document(
    rows: Sequence[Ranked],
    key: str,
    workloads: Mapping[Point, Workload],
    training: RankFor,
    unmodelled: Mapping[str, Effect],
) -> dict[str, Any]:
    from qbench.planner.ranking import best_of_each_card, sorted_rows

    best = {id(row) for row in best_of_each_card(rows)}
    fitting = sorted_rows(rows, key)
    return {
        "sorted_by": key,
        "epochs": training.epochs,
        "num_gpus": training.num_gpus,
        "workloads": [
            {"point": point.model_dump(mode="json"), **_workload_row(workload)}
            for point, workload in workloads.items()
        ],
        "unmodelled": sorted(unmodelled),
        "cards": [
            _row_document(row, _judged(row, unmodelled)) | {"is_first_to_fit": id(row) in best}
            for row in fitting
        ],
        "not_fitting": [_row_document(row, _judged(row, unmodelled)) for row in rows if not row.fits],
        "notes": [*NOTES, NO_SHARDING, *gpus_note(workloads, training.num_gpus)],
    }


def _workload_row(workload: Workload) -> dict[str, Any]:
    values = asdict(workload)
    values["passes"] = sorted(workload.passes.items())
    return values


def _row_document(row: Ranked, fit: Fit) -> dict[str, Any]:
    from qbench.words.fit_verdict import verdict_text

    return {
        "gpu": row.gpu.name,
        "memory_bytes": row.gpu.memory_bytes,
        "method": row.point.method,
        "precision": row.point.precision,
        "seq_len": row.point.train.seq_len,
        "fits": fit.fits,
        "verdict": fit.verdict,
        "why": verdict_text(fit),
        "step_time_s": row.step_time_s,
        "bound": row.bound,
        "bound_share": row.bound_share,
        "hours": row.hours,
        "hours_range": row.hours_range,
        "cost_usd": row.cost_usd,
        "spot_cost_usd": row.spot_cost_usd,
        "energy_kwh": row.energy_kwh,
        "rate": None if row.hourly_price is None else _price_values(row.hourly_price),
    }


def _print(
    rows: Sequence[Ranked],
    key: str,
    workloads: Mapping[Point, Workload],
    num_gpus: int,
    most_rows: int | None,
) -> None:
    from qbench.planner.ranking import best_of_each_card, sorted_rows
    from qbench.report.table import Column, Table
    from qbench.words.settings import describe_all

    first, varying = next(iter(workloads)), _varying(list(workloads))
    title = f"{describe_all(first, varying)}; {workloads[first].says}, by {key}"
    best = sorted_rows(best_of_each_card(rows), key)
    if not best:
        # A table of nothing, and notes on what is in it, would say nothing.
        print_sentence(title)
        print_sentence(left_note(rows))
        return
    # Energy, which all but who sorts by it can do without, would break names in 80 columns.
    last = Column("Energy", "kWh") if key == "energy" else Column("Spot", "USD")
    columns = (
        Column("GPU"),
        Column("Method"),
        Column("Hours", "h"),
        Column("Bound by"),
        Column("Cost", "USD"),
        last,
    )
    cells = tuple(
        (
            row.gpu.name,
            _method(row.point, varying),
            row.hours,
            "" if row.bound_share is None else f"{row.bound} {100 * row.bound_share:.0f} %",
            row.cost_usd,
            row.energy_kwh if key == "energy" else row.spot_cost_usd,
        )
        for row in best[:most_rows]
    )
    hidden = len(best) - len(cells)
    more = (
        [f"{hidden} more {'cards hold' if hidden > 1 else 'card holds'} it; --all lists them."]
        if hidden
        else []
    )
    below = (*close_note(best, key), *more, *notes(rows, workloads, num_gpus))
    print_table(Table(columns=columns, rows=cells, notes=below), title)


def _varying(points: Sequence[Point]) -> list[str]:
    """Return the short names of the settings that differ between points."""
    from qbench.scenario.settings import point_settings

    first, *others = map(point_settings, points)
    return [name for name, value in first.items() if any(other[name] != value for other in others)]


def _method(point: Point, varying: Sequence[str]) -> str:
    """Return the method of a point with its precision, and the settings that tell it from others."""
    from qbench.scenario.settings import point_settings
    from qbench.words.settings import change_text

    own = {
        name: value
        for name, value in point_settings(point).items()
        if name in varying and name != "precision" and value is not None
    }
    return ", ".join(filter(None, (f"{point.method} {point.precision}", change_text(own))))


def _price_values(price: HourlyPrice) -> dict[str, Any]:
    return asdict(price) | {
        "on_demand_from": source_text(price.on_demand_from),
        "spot_from": source_text(price.spot_from),
    }
