"""The largest sequence, batch or rank that a card holds, what fills it there, and what would free memory.

Found by bisection over plans. Whether more always needs more is not taken for granted: kernels change with
sizes and the caching allocator packs blocks in its own way, so the values next to the answer are planned too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qbench.errors import QbenchError, StepError
from qbench.plan.relief import Relief, reliefs
from qbench.records.record import Record
from qbench.scenario.expand import point_from
from qbench.scenario.schema import MOST_TOKENS, Point

Varied = Literal["seq_len", "per_device_train_batch_size", "r"]
LimitedBy = Literal["memory", "model", "range"]

STEPS: dict[Varied, int] = {"seq_len": 64, "per_device_train_batch_size": 1, "r": 1}
"""Distance of the values that are looked at, unless the caller says another one."""

LOOK_BEYOND = 3
"""Steps around a value that fits which are planned: one above may fit all the same, one below may not."""

Planner = Callable[[Sequence[Point]], list[Record]]
"""Gives the plan of each point, held against one card (the first of detail.fits)."""


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
    verdict: str
    reserved_bytes: int | None
    """None where the step cannot be planned at all."""


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
    """The category that grows most towards the answer: what the card is filled with in the end."""
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


def largest(point: Point, axis: Axis, planned: Planner) -> Largest:
    """Return the largest value of the axis with which the point fits the card of `planned`.

    Raises StepError when the point cannot be planned with the smallest value.
    """
    search = _Search(point, axis, planned)
    index = search.boundary()
    value = index * axis.step if index else None
    record = search.record(max(index, 1))
    above = search.probe(index + 1) if index < axis.count else None
    grows, grows_bytes = search.growth(max(index, 1))
    # One step above, where that can be planned; what fits there is worth its cost.
    tight = record if above is None or above.reserved_bytes is None else search.record(index + 1)
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
        reliefs=() if above is None else reliefs(tight, axis.setting, planned),
    )


class _Search:
    """Bisection over the values of an axis; each is planned once."""

    def __init__(self, point: Point, axis: Axis, planned: Planner) -> None:
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
                raise StepError(record.detail["error"])
            self._records[index] = record
        return self._records[index]

    def probe(self, index: int) -> Probe:
        """Return what the plan of a value says."""
        record = self.record(index)
        value = index * self._axis.step
        if record.outcome != "ok":
            return Probe(value=value, fits=False, verdict=record.detail["error"], reserved_bytes=None)
        fit = record.detail["fits"][0]
        return Probe(
            value=value,
            fits=fit["fits"],
            verdict=fit["verdict"],
            reserved_bytes=record.metrics["peak_reserved_bytes"],
        )

    def boundary(self) -> int:
        """Return the number of the largest value found to fit, the next one not; 0 when there is none."""
        count = self._axis.count
        if not self.probe(1).fits:
            return 0
        if self.probe(count).fits:
            return count
        low = self._bisected(1, count)
        while low < count:
            above = range(low + 2, min(low + LOOK_BEYOND, count) + 1)
            beyond = next((index for index in above if self.probe(index).fits), None)
            if beyond is None:
                break
            low = beyond
            while low < count and self.probe(low + 1).fits:
                low += 1
        for index in range(max(low - LOOK_BEYOND + 1, 1), low):
            self.probe(index)
        return low

    def _bisected(self, low: int, high: int) -> int:
        while high - low > 1:
            middle = (low + high) // 2
            if self.probe(middle).fits:
                low = middle
            else:
                high = middle
        return low

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
        """Return the category that grows most from the smallest value to this one, and by what for a step."""
        if index == 1:
            return None, None
        first, last = _breakdown(self.record(1)), _breakdown(self.record(index))
        grown = {name: last[name] - first[name] for name in last}
        name = max(grown, key=lambda name: grown[name])
        return name, grown[name] // (index - 1)


def _breakdown(record: Record) -> Mapping[str, int]:
    found: Mapping[str, int] = record.metrics["breakdown_bytes"]
    return found


def _fills(record: Record) -> dict[str, int]:
    sizes = sorted(_breakdown(record).items(), key=lambda item: -item[1])
    return {name: size for name, size in sizes if size}
