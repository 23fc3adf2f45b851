"""Every card for a training: whether it holds the step, and the hours, money and energy it takes.

Cards that choose the same kernels share one trace: what a trace asked of its card is asked of the next one,
and equal answers mean the same operators (`memory.by_card`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qbench.catalog.gpus import GpuSpec
from qbench.catalog.hourly_prices import HourlyPrice
from qbench.errors import StepError
from qbench.memory.allocator.config import AllocatorConfig
from qbench.planner.fit_verdict import fit_of
from qbench.planner.hardware import card_of
from qbench.planner.shared import SharedTraces
from qbench.planner.step_time import Bound
from qbench.planner.times_on_cards import rates_of, seconds_between, step_time_on
from qbench.planner.trace import Trace
from qbench.planner.workload import Workload
from qbench.records.calibration import Calibration
from qbench.records.fits import Fit
from qbench.scenario.schema import Point

MOST_LENGTHS = 3
"""Padded lengths that are planned; the times of others lie on the lines between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One card with one point."""

    gpu: GpuSpec
    point: Point
    """At the longest padded length of the workload."""
    fit: Fit
    """Whether and why the card cannot train this."""
    step_time_s: float | None = None
    """One optimizer step at the longest padded length; None where the card's rates are not known."""
    bound: Bound | None = None
    """What most of that time goes to: arithmetic, memory traffic or waiting for the host."""
    bound_share: float | None = None
    """Share of that time which goes to it."""
    hours: float | None = None
    hours_range: tuple[float, float] | None = None
    """Least and most hours by the spread of published rates; None where the card's rates were measured."""
    hourly_price: HourlyPrice | None = None
    """Price of an hour, with its source; None if there is none."""
    cost_usd: float | None = None
    spot_cost_usd: float | None = None
    energy_kwh: float | None = None
    """At the board's power limit all the time: an upper bound of the card, without its host."""

    @property
    def fits(self) -> bool:
        """Whether the card holds the point."""
        return self.fit.fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Prices, number and calibrations of the cards."""

    hourly_prices: Mapping[str, HourlyPrice] = field(default_factory=dict)
    """Prices by the catalog's name of the card."""
    num_gpus: int = 1
    """Cards that train on a share of the batches each, as data parallelism does; a point may have
    more of its own, and then this is 1."""
    calibrations: Sequence[Calibration] = ()
    """What was measured of the speed of cards; datasheets speak for the others."""


def ranked(
    points: Sequence[Point], gpus: Sequence[GpuSpec], workloads: Mapping[Point, Workload], terms: Terms
) -> list[Ranked]:
    """Return a row for each point and card, points in order and cards within.

    What GPUs of a point send to each other is timed, not what GPUs of the terms do. Raises StepError when a
    point cannot be planned for any card.
    """
    return [row for point in points for row in _of_point(point, gpus, workloads[point], terms)]


def _of_point(point: Point, gpus: Sequence[GpuSpec], workload: Workload, terms: Terms) -> list[Ranked]:
    lengths = planned_lengths(workload)
    traced = _traced(point, gpus, lengths)
    failures = [found for found in traced.values() if isinstance(found, StepError)]
    if len(failures) == len(traced):
        raise failures[0]
    longest = _at(point, lengths[-1])
    rows = []
    for gpu in gpus:
        found = traced[gpu.name]
        at_longest = found if isinstance(found, StepError) else found[lengths[-1]]
        row = Ranked(
            gpu=gpu,
            point=longest,
            fit=fit_of(gpu, at_longest, AllocatorConfig(), finds_shortage=False),
            hourly_price=terms.hourly_prices.get(gpu.name),
        )
        if row.fits and not isinstance(found, StepError):
            row = _with_times(row, found, workload, terms)
        rows.append(row)
    return rows


def planned_lengths(workload: Workload) -> list[int]:
    """Return the padded lengths to plan, ascending: the shortest, the longest, and the one in the middle."""
    lengths = sorted(workload.passes)
    if len(lengths) <= MOST_LENGTHS:
        return lengths
    return [lengths[0], (lengths[0] + lengths[-1]) // 2, lengths[-1]]


def _at(point: Point, seq_len: int) -> Point:
    return point.model_copy(update={"train": point.train.model_copy(update={"seq_len": seq_len})})


_Found = StepError | dict[int, Trace]


def _traced(point: Point, gpus: Sequence[GpuSpec], lengths: Sequence[int]) -> dict[str, _Found]:
    """Return by name of the card its traces by length, or why there are none."""
    found: dict[str, _Found] = {gpu.name: {} for gpu in gpus}
    cards = {gpu.name: card_of(gpu) for gpu in gpus}
    for length in lengths:
        different = list(dict.fromkeys(cards.values()))
        padded = _at(point, length)
        on_card = SharedTraces([padded])(padded, "cuda", different, AllocatorConfig(), with_costs=True)
        for name, card in cards.items():
            known, traced = found[name], on_card[card]
            if isinstance(traced, StepError):
                found[name] = traced
            elif isinstance(known, dict):
                known[length] = traced
    return found


def _with_times(row: Ranked, traces: Mapping[int, Trace], workload: Workload, terms: Terms) -> Ranked:
    point = row.point
    rates = rates_of(row.gpu, terms.calibrations)
    with_work = {length: traced for length, traced in traces.items() if traced.work is not None}
    times = {length: step_time_on(traced, row.gpu, rates) for length, traced in with_work.items()}
    longest = times[point.train.seq_len]
    if longest is not None:
        row = replace(row, step_time_s=longest.seconds, bound=longest.bound, bound_share=longest.bound_share)
    known = {length: timed.seconds for length, timed in times.items() if timed is not None}
    if len(known) < len(times):
        return row
    price, num_gpus = row.hourly_price, terms.num_gpus * point.num_gpus
    hours = _hours(known, workload, point, num_gpus)
    between = {length: seconds_between(traced, row.gpu, rates) for length, traced in with_work.items()}
    ends = [{length: both[end] for length, both in between.items() if both is not None} for end in (0, 1)]
    return replace(
        row,
        hours=hours,
        hours_range=(
            (_hours(ends[0], workload, point, num_gpus), _hours(ends[1], workload, point, num_gpus))
            if len(ends[0]) == len(times)
            else None
        ),
        cost_usd=_cost(hours, None if price is None else price.on_demand_usd_per_hour, num_gpus),
        spot_cost_usd=_cost(hours, None if price is None else price.spot_usd_per_hour, num_gpus),
        energy_kwh=hours * num_gpus * row.gpu.tdp_w / 1000,
    )


def _hours(times: Mapping[int, float], workload: Workload, point: Point, num_gpus: int) -> float:
    """Return the hours of all passes, times between planned lengths interpolated."""
    import numpy as np

    lengths = sorted(times)
    passes = sorted(workload.passes)
    seconds = np.interp(passes, lengths, [times[length] for length in lengths])
    total = sum(float(each) * workload.passes[length] for each, length in zip(seconds, passes, strict=True))
    # A step has several passes; each is taken to have its share of the optimizer's time.
    return total / point.train.gradient_accumulation_steps / num_gpus / 3600


def _cost(hours: float, usd_per_hour: float | None, num_gpus: int) -> float | None:
    return None if usd_per_hour is None else hours * usd_per_hour * num_gpus


SORT_KEYS = {"cost": "cost_usd", "spot": "spot_cost_usd", "time": "hours", "energy": "energy_kwh"}
"""What the best card has least of, and the field of Ranked that holds it."""


def sorted_rows(rows: Sequence[Ranked], key: str) -> list[Ranked]:
    """Return the rows that fit by cost, spot, time or energy, smallest first; unknown ones last."""

    def order(row: Ranked) -> tuple[bool, float, float]:
        value: Any = getattr(row, SORT_KEYS[key])
        return value is None, value or 0.0, row.hours if row.hours is not None else float("inf")

    return sorted((row for row in rows if row.fits), key=order)


def like_the_first(rows: Sequence[Ranked], key: str) -> list[Ranked]:
    """Return which of sorted rows lie within the range of the first, so that they may as well be better.

    The range is that of its hours, by the spread of published rates; what is sorted by grows with them.
    """
    if not rows or rows[0].hours_range is None or not rows[0].hours:
        return []
    first, *others = rows
    best, longest = getattr(first, SORT_KEYS[key]), rows[0].hours_range[1] / rows[0].hours
    if best is None:
        return []
    values = ((row, getattr(row, SORT_KEYS[key])) for row in others)
    return [row for row, value in values if value is not None and value < best * longest]


def best_of_each_card(rows: Sequence[Ranked]) -> list[Ranked]:
    """Return for each card the first of its rows that fits: LoRA before QLoRA where points are so ordered."""
    found: dict[str, Ranked] = {}
    for row in rows:
        if row.fits:
            found.setdefault(row.gpu.name, row)
    return list(found.values())
