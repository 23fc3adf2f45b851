"""The largest sequence, batch or rank that a card holds, what fills it there, and what would free memory.

Each plan tells which value to try next. Whether more always needs more is not taken for granted: kernels
change with sizes and the caching allocator packs blocks in its own way, so the values next to the answer are
planned too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qbench.errors import QbenchError, StepError
from qbench.planner.changes import Relief, reliefs
from qbench.records.parts import FitVerdict
from qbench.records.record import Record
from qbench.scenario.expand import point_from
from qbench.scenario.schema import MOST_TOKENS, Point

Varied = Literal["seq_len", "per_device_train_batch_size", "r"]
LimitedBy = Literal["memory", "model", "range"]

STEPS: dict[Varied, int] = {"seq_len": 64, "per_device_train_batch_size": 1, "r": 1}
"""Distance of the values that are looked at, unless the caller says another one."""

LOOK_BEYOND = 3
"""Steps around a value that fits which are planned: one above may fit all the same, one below may not."""

MOST_CLIMBS = 8
"""How often a value that does not fit is passed by, since one close above it fits."""

GROWTH = 8
"""How many times the largest value known to fit the next one is, where no model bounds it: the largest values
would take minutes to plan, and no card holds them."""

PlanPoints = Callable[[Sequence[Point]], list[Record]]
"""Gives the plan of each point, checked against one card (the first of detail.fits)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The setting to be made large: its values are step, 2 x step, and so on up to the limit."""

    setting: Varied
    step: int
    limit: int
    limited_by: LimitedBy
    """Whether the limit is the model's or that of what can be planned."""
    why: str
    """Where the limit comes from."""

    @property
    def count(self) -> int:
        """Number of values."""
        return self.limit // self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One value that was planned."""

    value: int
    fits: bool
    verdict: FitVerdict
    reserved_bytes: int | None = None
    """None where the step cannot be planned at all."""
    error: str | None = None
    """Why it cannot be planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The answer for one point and one card."""

    axis: Axis
    value: int | None
    """None when not even one step fits."""
    record: Record
    """The plan at `value`, or at one step when nothing fits."""
    above: Probe | None
    """One step above `value`, which does not fit; None where the limit is reached."""
    limited_by: LimitedBy
    is_monotone: bool
    """Whether no planned value above one that does not fit fits."""
    probes: tuple[Probe, ...]
    """All values that were planned, ascending."""
    fills: dict[str, int]
    """Bytes at the peak by category, largest first."""
    grows: str | None
    """The category that grows most one step further: what the card would be filled with."""
    grows_bytes: int | None
    """Its growth for one step of the axis."""
    reliefs: tuple[Relief, ...]
    """Changes that free memory, the cheapest first, planned one step above the answer."""


def axis_of(point: Point, setting: Varied, step: int | None = None) -> Axis:
    """Return the axis of a setting for a point, bounded by its model.

    Raises ScenarioError or StepError when the model cannot be read, QbenchError when the step is no step.
    """
    limit, limited_by, why = _limit(point, setting)
    step = STEPS[setting] if step is None else step
    if not 1 <= step <= limit:
        raise QbenchError(f"--step: given {step}; allowed: 1 to {limit:,} ({why})")
    return Axis(setting=setting, step=step, limit=limit, limited_by=limited_by, why=why)


def _limit(point: Point, setting: Varied) -> tuple[int, LimitedBy, str]:
    from qbench.step.model import load_config  # The heavy libraries.

    train = point.train
    if setting == "per_device_train_batch_size":
        most = min(MOST_TOKENS // train.seq_len, 2**20)
        return most, "range", f"qbench plans at most {MOST_TOKENS:,} tokens in one forward pass"
    text: Any = load_config(with_value(point, "seq_len", 1)).get_text_config()
    if setting == "r":
        if point.lora is None:
            raise QbenchError(
                "--vary r: the scenario trains every weight; allowed: points with lora settings"
            )
        return int(text.hidden_size), "model", "a rank above hidden_size adds nothing to a weight"
    most = min(MOST_TOKENS // train.per_device_train_batch_size, 2**24)
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions <= most:
        return positions, "model", f"max_position_embeddings of the model is {positions:,}"
    return most, "range", f"qbench plans at most {MOST_TOKENS:,} tokens in one forward pass"


def with_value(point: Point, setting: str, value: Any) -> Point:
    """Return a point with one setting changed, by its short name."""
    return point_from(point.model_dump(), {setting: value})


def largest(point: Point, axis: Axis, planned: PlanPoints, *, with_reliefs: bool = True) -> Largest:
    """Return the largest value of the axis with which the point fits the card of `planned`.

    Without `with_reliefs` no changes that free memory are planned. Raises StepError when the point cannot be
    planned with the smallest value.
    """
    search = _Search(point, axis, planned)
    index = search.boundary()
    value = index * axis.step if index else None
    record = search.record(max(index, 1))
    above = search.probe(index + 1) if index < axis.count else None
    grows, grows_bytes = search.growth(max(index, 1))
    # One step above, where that can be planned; what fits there is worth its cost.
    before = record if above is None or above.reserved_bytes is None else search.record(index + 1)
    return Largest(
        axis=axis,
        value=value,
        record=record,
        above=above,
        limited_by="memory" if above is not None else axis.limited_by,
        is_monotone=search.is_monotone,
        probes=search.probes,
        fills=_fills(record),
        grows=grows,
        grows_bytes=grows_bytes,
        reliefs=() if above is None or not with_reliefs else reliefs(before, axis.setting, planned),
    )


class _Search:
    """The values of an axis, each planned once; they are numbered from 1."""

    def __init__(self, point: Point, axis: Axis, planned: PlanPoints) -> None:
        self._point = point
        self._axis = axis
        self._planned = planned
        self._records: dict[int, Record] = {}

    def record(self, index: int) -> Record:
        """Return the plan of the value with this number, counted from 1."""
        if index not in self._records:
            point = with_value(self._point, self._axis.setting, index * self._axis.step)
            (record,) = self._planned([point])
            if record.outcome != "ok" and index == 1:
                raise StepError(record.error)
            self._records[index] = record
        return self._records[index]

    def probe(self, index: int) -> Probe:
        """Return what the plan of a value says."""
        record = self.record(index)
        value = index * self._axis.step
        if record.outcome != "ok":
            return Probe(value=value, fits=False, verdict="unknown", error=record.error)
        (fit,) = record.fits
        reserved = record.peak_reserved_bytes
        return Probe(value=value, fits=fit.fits, verdict=fit.verdict, reserved_bytes=reserved)

    def boundary(self) -> int:
        """Return the number of the largest value found to fit, the next one not; 0 when there is none."""
        if not self.probe(1).fits:
            return 0
        low, high = self._bracket()
        ceiling = self._axis.count + 1
        while low < self._axis.count:
            low = self._last_around(self._edge(low, high), ceiling)
            below = [self.probe(index) for index in range(max(low - LOOK_BEYOND + 1, 1), low)]
            if not below or any(probe.fits for probe in below):
                break
            # It fits by luck, as the allocator packs blocks: the answer is what fits without, below it.
            ceiling, high = low, low - len(below)
            low = max(index for index in self._records if index < high and self.probe(index).fits)
        return low

    def _last_around(self, low: int, ceiling: int) -> int:
        """Return the number of the last value below the ceiling that fits of those close above one that fits.

        After MOST_CLIMBS of them, where every other value may fit, one is taken that is known not to go on.
        """
        for _ in range(MOST_CLIMBS):
            above = range(low + 1, min(low + LOOK_BEYOND + 1, ceiling))
            beyond = next((index for index in above if self.probe(index).fits), None)
            if beyond is None:
                return low
            failing = [index for index in self._records if index > beyond and not self.probe(index).fits]
            low = self._edge(beyond, min(failing)) if failing else beyond
        if low == self._axis.count or not self.probe(low + 1).fits:
            return low
        known = self._records
        return max(i for i in known if i + 1 in known and self.probe(i).fits and not self.probe(i + 1).fits)

    def _edge(self, low: int, high: int) -> int:
        """Return the number of a value that fits while the next does not, starting from one of each."""
        reach = 1
        while high - low > 1:
            # So far at least from both ends: few steps where the estimates are good, a bisection where not.
            margin = min(reach, (high - low) // 2)
            middle = min(max(self._estimate(low, high), low + margin), high - margin)
            low, high = (middle, high) if self.probe(middle).fits else (low, middle)
            reach *= 2
        return low

    def _bracket(self) -> tuple[int, int]:
        """Return the numbers of a value that fits and of a larger one that does not, or would be the next."""
        low, count = 1, self._axis.count
        high = count if self._axis.limited_by == "model" else min(GROWTH, count)
        while self.probe(high).fits:
            if high == count:
                return count, count + 1
            low, high = high, min(GROWTH * high, count)
        return low, high

    def _estimate(self, low: int, high: int) -> int:
        """Estimate where the need reaches the card's memory, between a value that fits and one that does not.

        What is needed beyond the smallest value is taken for a power of the value, as lengths grow linearly
        or by their square. Need is more than what is allocated and less than what would be reserved with no
        limit: the allocator gives back some of its cache before it fails. How much is bounded by both plans,
        and the middle is taken.
        """
        middle = math.isqrt(low * high)
        if self._records[high].outcome != "ok":
            return middle
        first, fitting, failing = (_Need.of(self._records[index]) for index in (1, low, high))
        share = (fitting.cached_share + failing.cached_share) / 2
        base = first.at(share)
        near, far, card = (size - base for size in (fitting.at(share), failing.at(share), failing.limit))
        if not 0 < near <= card < far:
            return middle
        return round(low * math.pow(high / low, math.log(card / near) / math.log(far / near)))

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Everything that was planned, ascending."""
        return tuple(self.probe(index) for index in sorted(self._records))

    @property
    def is_monotone(self) -> bool:
        """Whether nothing fits above something that does not."""
        verdicts = [probe.fits for probe in self.probes]
        return verdicts == sorted(verdicts, reverse=True)

    def growth(self, index: int) -> tuple[str | None, int | None]:
        """Return the category that grows most towards the next value, and by what for a step.

        From the smallest value to this one where the next was not or cannot be planned.
        """
        after = self._records.get(index + 1)
        low, high = (index, index + 1) if after is not None and after.outcome == "ok" else (1, index)
        if low == high:
            return None, None
        first, last = self.record(low).breakdown_bytes, self.record(high).breakdown_bytes
        grown = {name: last[name] - first[name] for name in last}
        name = max(grown, key=lambda name: grown[name])
        return name, grown[name] // (high - low)


@dataclass(frozen=True, slots=True)
class _Need:
    """What a plan needs of its card in bytes, as far as it is known."""

    allocated: int
    reserved: int
    limit: int
    """What the card leaves beside the context."""

    @classmethod
    def of(cls, record: Record) -> _Need:
        (fit,), allocated, reserved = record.fits, record.peak_allocated_bytes, record.peak_reserved_bytes
        assert fit.memory_bytes is not None
        assert record.context_bytes is not None
        assert allocated is not None
        assert reserved is not None
        return cls(allocated, reserved, fit.memory_bytes - record.context_bytes[-1])

    @property
    def cached_share(self) -> float:
        """How much of the cache, from 0 to 1, the card has room for beside what is allocated."""
        if self.reserved <= self.limit:
            return 1
        return max(self.limit - self.allocated, 0) / max(self.reserved - self.allocated, 1)

    def at(self, share: float) -> float:
        """Return the need where so much of the cache cannot be given back."""
        return self.allocated + share * (self.reserved - self.allocated)


def _fills(record: Record) -> dict[str, int]:
    sizes = sorted(record.breakdown_bytes.items(), key=lambda item: -item[1])
    return {name: size for name, size in sizes if size}
