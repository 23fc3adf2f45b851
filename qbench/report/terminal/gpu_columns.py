"""What several plans leave free on each card: as columns of their table, or as tables of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qbench.comparison.results import Result
from qbench.records.fits import Fit
from qbench.report.terminal.table import fitted, line_width, width
from qbench.units import format_seconds
from qbench.words.fit_verdict import room_in_gib

MOST_GPU_COLUMNS = 2
"""Cards that have a column each in the table of the plans."""


def gpu_columns(results: Sequence[Result]) -> dict[str, list[str]]:
    """Return what is left on each card, or where there are many the smallest of them that holds each plan."""
    rooms = _rooms(results)
    if len(rooms) <= MOST_GPU_COLUMNS:
        return {f"{name}, GiB": cells for name, cells in rooms.items()}
    fits = [result.fits for result in results]
    return {"Smallest named": [_smallest(held) for held in fits]}


def _rooms(results: Sequence[Result]) -> dict[str, list[str]]:
    """Return what is left on each card that any plan was checked against, one cell for each plan."""
    fits = [{fit.gpu: fit for fit in result.fits} for result in results]
    names = dict.fromkeys(name for held in fits for name in held)
    # One card's time of a step has a column of its own.
    several = len(names) > 1
    return {name: [_room(held.get(name), with_time=several) for held in fits] for name in names}


def gpu_tables(results: Sequence[Result], lead: dict[str, list[str]]) -> list[list[str]]:
    """Return tables of what is left on each card, where these are too many for the table of the plans."""
    rooms = _rooms(results)
    if len(rooms) <= MOST_GPU_COLUMNS:
        return []
    tables = [dict(lead)]
    for name, cells in rooms.items():
        if len(tables[-1]) > len(lead) and width(tables[-1] | {name: cells}) > line_width():
            tables.append(dict(lead))
        tables[-1][name] = cells
    return [
        ["GiB left on each GPU, and the time of a step:", *fitted(table, len(results))] for table in tables
    ]


def _room(fit: Fit | None, *, with_time: bool) -> str:
    said = room_in_gib(fit)
    if not with_time or fit is None or not fit.fits or fit.step_time_s is None:
        return said
    return f"{said}, {format_seconds(fit.step_time_s)}"


def _smallest(fits: Iterable[Fit]) -> str:
    holding = [fit for fit in fits if fit.fits]
    return min(holding, key=lambda fit: fit.memory_bytes or 0).gpu if holding else "none"
