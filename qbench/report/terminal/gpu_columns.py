"""What several plans leave free on each card: as columns of their table, or as tables of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qbench.comparison.results import Result
from qbench.records.fits import Fit
from qbench.report.terminal.table import WIDTH, fitted, width
from qbench.units import GIB, NOT_AVAILABLE, format_seconds

EMPTIED = "tight"
"""For a plan that a card holds only after the allocator has emptied its cache."""

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
    """Return what is left on each card that any plan was held against, one cell for each plan."""
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
        if len(tables[-1]) > len(lead) and width(tables[-1] | {name: cells}) > WIDTH:
            tables.append(dict(lead))
        tables[-1][name] = cells
    return [
        ["GiB left on each GPU, and the time of a step:", *fitted(table, len(results))] for table in tables
    ]


def _room(fit: Fit | None, *, with_time: bool) -> str:
    if fit is None:
        return NOT_AVAILABLE
    if fit.headroom_bytes is None:
        return "no kernel"
    room = fit.headroom_bytes / GIB
    if not fit.fits:
        return f"{-room:.2f} short" if fit.verdict == "does not fit" else f"tight, {-room:.2f} short"
    # What is left once the allocator has emptied its cache is no room to spare.
    said = EMPTIED if fit.num_alloc_retries else f"{room:.2f} left"
    return f"{said}, {format_seconds(fit.step_time_s)}" if with_time and fit.step_time_s is not None else said


def _smallest(fits: Iterable[Fit]) -> str:
    holding = [fit for fit in fits if fit.fits]
    return min(holding, key=lambda fit: fit.memory_bytes or 0).gpu if holding else "none"
