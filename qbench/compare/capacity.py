"""What a card holds: how far QLoRA and 16-bit LoRA get on it, in sentences computed from plans."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.compare.headline import MANY_MODELS, PREFERRED, describe, short_model
from qbench.compare.methods import BASELINE_PRECISIONS
from qbench.compare.results import Result, fits_of
from qbench.scenario.schema import QUANTIZED_PRECISIONS
from qbench.units import GIB

AXES = {
    "seq_len": ("tokens", "lengths"),
    "per_device_train_batch_size": ("sequences a batch", "batch sizes"),
    "r": ("rank", "ranks"),
}
"""Settings along which it is told how far a method gets, the one that is told first: unit, and many of it."""

MOST_CARDS = 3
"""Cards that are told of for many models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far one precision gets on one card, along one setting."""

    precision: str
    fitting: dict[Any, Result]
    """The plans that the card holds, by the value of the setting."""
    asked: int
    """Plans that were held against the card."""

    @property
    def furthest(self) -> Any:
        """The largest value that fits; None when none does."""
        return max(self.fitting, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """QLoRA against 16-bit LoRA on one card, all else equal."""

    model: str
    gpu: str
    memory_bytes: int | None
    axis: str | None
    """The setting that varies; None where a single point was planned for each side."""
    qlora: Reach
    lora: Reach

    @property
    def card(self) -> str:
        """The card with what its memory leaves to a process."""
        return f"{self.gpu} ({self.memory_bytes / GIB:.1f} GiB)" if self.memory_bytes else self.gpu

    @property
    def differs(self) -> bool:
        """Say whether one method gets further than the other."""
        return bool(self.qlora.furthest != self.lora.furthest)

    @property
    def ahead(self) -> str | None:
        """The method that gets further, qlora or lora; None where both get as far."""
        if not self.differs:
            return None
        return "qlora" if _rank(self.qlora) > _rank(self.lora) else "lora"


def capacity_sentences(results: Sequence[Result]) -> list[str]:
    """Return what tells the methods apart, then what does not; see `telling`."""
    return [sentence(capacity) for capacity in telling(results)]


def telling(results: Sequence[Result]) -> list[Capacity]:
    """Return what is worth telling of QLoRA and LoRA plans held against the same cards, differences first.

    For each model the smallest card on which QLoRA gets further, and the smallest on which LoRA does; where
    no card tells them apart, the smallest that holds anything, else the largest. Of many models the largest
    that each method trains is told instead, card by card. Nothing is told where a side is missing.
    """
    by_model: dict[str, list[Result]] = {}
    for result in results:
        if result.kind == "plan" and result.point.lora is not None and fits_of(result):
            by_model.setdefault(result.point.model, []).append(result)
    found = [_worth_telling(capacities(members)) for members in by_model.values()]
    if sum(map(bool, found)) >= MANY_MODELS:
        plans = [result for members in by_model.values() for result in members]
        across = _worth_telling(_on_cards("model", _largest_group(plans, "model")), MOST_CARDS)
        if across:
            return across
    return sorted(itertools.chain(*found), key=lambda capacity: not capacity.differs)


def capacities(results: Sequence[Result]) -> list[Capacity]:
    """Return the capacity of each card for plans of one model, over the settings with most to tell."""
    for axis in AXES:
        group = _largest_group(results, axis)
        if _values(group, axis) > 1:
            return _on_cards(axis, group)
    return _on_cards(None, next(iter(_sides(results, None)), []))


def _worth_telling(found: Sequence[Capacity], most: int = 1) -> list[Capacity]:
    smallest_first = sorted(found, key=lambda capacity: capacity.memory_bytes or 0)
    ahead = [capacity for capacity in smallest_first if capacity.ahead == "qlora"][:most]
    behind = [capacity for capacity in smallest_first if capacity.ahead == "lora"][:most]
    equal = [capacity for capacity in smallest_first if capacity.qlora.fitting] or smallest_first[-1:]
    return [*ahead, *behind] or equal[:1]


def _on_cards(axis: str | None, group: Sequence[Result]) -> list[Capacity]:
    rows: dict[str, dict[str, list[tuple[Any, Result, dict[str, Any]]]]] = {}
    for result in group:
        for fit in fits_of(result):
            by_precision = rows.setdefault(fit["gpu"], {})
            by_precision.setdefault(result.point.precision, []).append((_place(result, axis), result, fit))
    found = (_capacity(gpu, axis, by_precision) for gpu, by_precision in rows.items())
    return [capacity for capacity in found if capacity is not None]


def _place(result: Result, axis: str | None) -> Any:
    """Return where a result stands along an axis: models by their parameters."""
    if axis == "model":
        return result.value("total_params") or 0
    return result.settings.get(axis) if axis else 0


def _largest_group(results: Sequence[Result], axis: str) -> list[Result]:
    """Return the most plans that are equal but for an axis and the precision, and have both methods."""
    return max(_sides(results, axis), key=lambda members: _values(members, axis), default=[])


def _sides(results: Sequence[Result], axis: str | None) -> list[list[Result]]:
    """Return the groups of plans, equal but for axis and precision, in which both methods are."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        key = tuple(item for item in result.settings.items() if item[0] not in ("precision", axis))
        groups.setdefault(key, []).append(result)
    return [members for members in groups.values() if {_side(r) for r in members} >= {"qlora", "lora"}]


def _values(results: Sequence[Result], axis: str) -> int:
    return len({_place(result, axis) for result in results})


def _side(result: Result) -> str | None:
    precision = result.point.precision
    if precision in QUANTIZED_PRECISIONS:
        return "qlora"
    return "lora" if precision in BASELINE_PRECISIONS else None


def _capacity(
    gpu: str, axis: str | None, by_precision: dict[str, list[tuple[Any, Result, dict[str, Any]]]]
) -> Capacity | None:
    qlora = next((name for name in PREFERRED if name in by_precision), None)
    lora = next((name for name in BASELINE_PRECISIONS if name in by_precision), None)
    if qlora is None or lora is None:
        return None
    # Only what was planned for both: a side does not stop where nobody asked any further.
    both = {value for value, *_ in by_precision[qlora]} & {value for value, *_ in by_precision[lora]}
    if not both:
        return None
    asked = {name: [row for row in by_precision[name] if row[0] in both] for name in (qlora, lora)}
    memory = next((fit.get("memory_bytes") for _, _, fit in by_precision[qlora]), None)
    return Capacity(
        model=by_precision[qlora][0][1].point.model,
        gpu=gpu,
        memory_bytes=memory,
        axis=axis,
        qlora=_reach(qlora, asked[qlora]),
        lora=_reach(lora, asked[lora]),
    )


def _reach(precision: str, rows: Iterable[tuple[Any, Result, dict[str, Any]]]) -> Reach:
    listed = list(rows)
    fitting = {value: result for value, result, fit in listed if fit.get("fits")}
    return Reach(precision=precision, fitting=fitting, asked=len(listed))


def sentence(capacity: Capacity) -> str:
    """Return how far both methods get on the card, and what QLoRA costs in speed there."""
    fitting = [result for side in (capacity.qlora, capacity.lora) for result in side.fitting.values()]
    if not fitting:
        of = "" if capacity.axis == "model" else f" of {short_model(capacity.model)}"
        many = _many(capacity, capacity.qlora)
        at = f" at any of the {many} planned" if many else ""
        return f"Neither {' nor '.join(_names(capacity))}{of} fits on {capacity.card}{at}."
    hidden = ("model", "precision", *([capacity.axis] if capacity.axis else []))
    conditions = f"(planned; {describe(fitting[0], leave_out=hidden)})"
    return f"On {capacity.card} {_verdict(capacity)} {conditions}.{_speed(capacity)}"


def _names(capacity: Capacity) -> dict[str, Reach]:
    names = {f"QLoRA ({capacity.qlora.precision})": capacity.qlora}
    return names | {f"{capacity.lora.precision} LoRA": capacity.lora}


def _verdict(capacity: Capacity) -> str:
    names = _names(capacity)
    # The side that gets further is told first, whichever it is.
    ahead, behind = sorted(names, key=lambda name: -_rank(names[name]))
    trained = _trained(capacity, names[ahead])
    if not capacity.differs:
        most = ", the most asked for" if capacity.axis and _all_fit(capacity) else ""
        return f"both {ahead} and {behind} train {trained}{most}"
    if names[behind].furthest is None:
        many = _many(capacity, names[behind])
        fails = f"fits at none of the {many}" if many else "does not fit"
        return f"{ahead} trains {trained} where {behind} {fails}"
    return f"{ahead} trains {trained} where {behind} stops at {_amount(capacity.axis, names[behind])}"


def _trained(capacity: Capacity, reach: Reach) -> str:
    if capacity.axis == "model":
        return f"models up to {_amount('model', reach)}"
    at = f" at {_amount(capacity.axis, reach)}" if capacity.axis else ""
    return f"{short_model(capacity.model)}{at}"


def _many(capacity: Capacity, reach: Reach) -> str:
    """Return the values that were planned as '4 lengths'; empty where it was a single one."""
    if reach.asked < 2 or capacity.axis is None:
        return ""
    return f"{reach.asked} {'models' if capacity.axis == 'model' else AXES[capacity.axis][1]}"


def _rank(reach: Reach) -> float:
    return -1 if reach.furthest is None else float(reach.furthest)


def _all_fit(capacity: Capacity) -> bool:
    return all(len(reach.fitting) == reach.asked for reach in (capacity.qlora, capacity.lora))


def _amount(axis: str | None, reach: Reach) -> str:
    """Return the furthest value that fits, with its unit."""
    if axis == "model":
        return short_model(reach.fitting[reach.furthest].point.model)
    return _in_unit(axis, reach.furthest)


def _in_unit(axis: str | None, value: Any) -> str:
    unit = AXES[axis][0] if axis in AXES else ""
    return f"{unit} {value:,}" if axis == "r" else f"{value:,} {unit}".strip()


def _speed(capacity: Capacity) -> str:
    """Say what QLoRA costs in speed, at the largest setting that both hold and both have a speed of."""
    for value in sorted(set(capacity.qlora.fitting) & set(capacity.lora.fitting), reverse=True):
        ours = _tokens_per_s(capacity.qlora.fitting[value], capacity.gpu)
        theirs = _tokens_per_s(capacity.lora.fitting[value], capacity.gpu)
        if ours and theirs:
            where = f" {_at(capacity, value)}" if capacity.axis and capacity.differs else ""
            return f" {_change(ours / theirs)}{where}."
    return ""


def _at(capacity: Capacity, value: Any) -> str:
    if capacity.axis == "model":
        return f"with {short_model(capacity.qlora.fitting[value].point.model)}"
    return f"at {_in_unit(capacity.axis, value)}"


def _tokens_per_s(result: Result, gpu: str) -> float | None:
    """Return the planned speed on a card, None where the plan has none."""
    speeds = (fit.get("tokens_per_s") for fit in fits_of(result) if fit["gpu"] == gpu)
    return next((speed for speed in speeds if isinstance(speed, (int, float))), None)


def _change(ratio: float) -> str:
    percent = 100 * (1 - ratio)
    if abs(percent) < 1:
        return "QLoRA trains at the same speed"
    return f"QLoRA costs {percent:.0f} % of the speed" if percent > 0 else f"QLoRA is {-percent:.0f} % faster"
