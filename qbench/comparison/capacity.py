"""What a card holds: how far QLoRA and 16-bit LoRA get on it, in sentences computed from plans."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qbench.comparison.methods import BASELINE_PRECISIONS
from qbench.comparison.reach import Capacity, Reach
from qbench.comparison.results import Result, fits_of
from qbench.scenario.schema import QUANTIZED_PRECISIONS
from qbench.words.headline import MANY_MODELS, PREFERRED
from qbench.words.settings import describe, short_model

AXES = {
    "seq_len": ("tokens", "lengths"),
    "per_device_train_batch_size": ("sequences a batch", "batch sizes"),
    "r": ("rank", "ranks"),
}
"""Settings along which it is told how far a method gets, the one that is told first: unit, and many of it."""

MOST_CARDS = 3
"""Cards that are told of for many models."""


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
        if len(_values(group, axis)) > 1:
            return _on_cards(axis, group)
    return _on_cards(None, _largest_group(results, None))


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
    """Return where a result stands along an axis: models by their parameters, then by their name."""
    if axis == "model":
        return result.value("total_params") or 0, result.point.model
    return result.settings.get(axis) if axis else 0


def _largest_group(results: Sequence[Result], axis: str | None) -> list[Result]:
    """Return the plans, equal but for an axis and the precision, whose methods share the most values.

    Of several with as many it is the first in which one method gets further than the other.
    """
    groups = _sides(results, axis)
    sizes = [len(_shared(members, axis)) for members in groups]
    largest = [members for members, size in zip(groups, sizes, strict=True) if size == max(sizes)]
    for members in largest:
        if any(capacity.differs for capacity in _on_cards(axis, members)):
            return members
    return max(largest, key=lambda members: len(_values(members, axis)), default=[])


def _sides(results: Sequence[Result], axis: str | None) -> list[list[Result]]:
    """Return the groups of plans, equal but for axis and precision, in which both methods are."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        key = tuple(item for item in result.settings.items() if item[0] not in ("precision", axis))
        groups.setdefault(key, []).append(result)
    return [members for members in groups.values() if {_side(r) for r in members} >= {"qlora", "lora"}]


def _values(results: Iterable[Result], axis: str | None) -> set[Any]:
    return {_place(result, axis) for result in results}


def _shared(results: Sequence[Result], axis: str | None) -> set[Any]:
    """Return the values of an axis that both methods have plans of, in the precisions that are compared."""
    values: dict[str, set[Any]] = {}
    for result in results:
        values.setdefault(result.point.precision, set()).add(_place(result, axis))
    return _compared(values)[2]


def _compared(values: Mapping[str, set[Any]]) -> tuple[str, str, set[Any]]:
    """Return the precisions of QLoRA and LoRA that share most values, preferred first, and those values."""
    pairs = [
        (qlora, lora, values.get(qlora, set()) & values.get(lora, set()))
        for qlora, lora in itertools.product(PREFERRED, BASELINE_PRECISIONS)
    ]
    return max(pairs, key=lambda pair: len(pair[2]))


def _side(result: Result) -> str | None:
    precision = result.point.precision
    if precision in QUANTIZED_PRECISIONS:
        return "qlora"
    return "lora" if precision in BASELINE_PRECISIONS else None


def _capacity(
    gpu: str, axis: str | None, by_precision: dict[str, list[tuple[Any, Result, dict[str, Any]]]]
) -> Capacity | None:
    values = {precision: {value for value, *_ in rows} for precision, rows in by_precision.items()}
    # Only what was planned for both is compared: a side does not stop where nobody asked any further.
    qlora, lora, both = _compared(values)
    if not both:
        return None
    memory = next((fit.get("memory_bytes") for _, _, fit in by_precision[qlora]), None)
    return Capacity(
        model=by_precision[qlora][0][1].point.model,
        gpu=gpu,
        memory_bytes=memory,
        axis=axis,
        qlora=_reach(qlora, by_precision[qlora], both),
        lora=_reach(lora, by_precision[lora], both),
    )


def _reach(precision: str, rows: Sequence[tuple[Any, Result, dict[str, Any]]], both: set[Any]) -> Reach:
    asked = [row for row in rows if row[0] in both]
    return Reach(
        precision=precision,
        fitting={value: result for value, result, fit in asked if fit.get("fits")},
        failing={value: result for value, result, fit in asked if not fit.get("fits")},
        alone={value: bool(fit.get("fits")) for value, _, fit in rows if value not in both},
    )


def sentence(capacity: Capacity) -> str:
    """Return how far both methods get on the card, what QLoRA costs in speed, and what one side has alone."""
    fitting = [result for side in (capacity.qlora, capacity.lora) for result in side.fitting.values()]
    if not fitting:
        return f"{_neither(capacity)}{_beyond(capacity)}"
    hidden = ("model", "precision", *([capacity.axis] if capacity.axis else []))
    conditions = f"(planned; {describe(fitting[0].point, hidden)})"
    return f"On {capacity.card} {_verdict(capacity)} {conditions}.{_speed(capacity)}{_beyond(capacity)}"


def _neither(capacity: Capacity) -> str:
    of = "" if capacity.axis == "model" else f" of {short_model(capacity.model)}"
    many = _many(capacity, capacity.qlora)
    alone = capacity.qlora.alone or capacity.lora.alone
    at = f" at any of the {many} planned{' for both' if alone else ''}" if many else ""
    if alone and not many:
        at = "".join(f" {_at(capacity.axis, value)}" for value in capacity.qlora.failing)
    return f"Neither {' nor '.join(_names(capacity))}{of} fits on {capacity.card}{at}."


def _beyond(capacity: Capacity) -> str:
    """Say what fits, or does not, of the plans that one side has alone."""
    names = list(_names(capacity).items())
    texts: list[str] = []
    for (name, side), (other, further) in zip(names, reversed(names), strict=True):
        if side.beyond is not None:
            value, fits = side.beyond
            if side.rank < further.rank and value == side.stop:
                continue  # The verdict says that it stops there.
            verb, at = "fit", _at(capacity.axis, value)
            if capacity.axis == "model":
                verb, at = "train", _in_unit("model", value)
            also = "also " if side.fitting else ""
            does = f"{also}{verb}s" if fits else f"does not {verb}"
            texts.append(f" {name} {does} {at}, of which {other} has no plan.")
    return "".join(texts)


def _names(capacity: Capacity) -> dict[str, Reach]:
    names = {f"QLoRA ({capacity.qlora.precision})": capacity.qlora}
    return names | {f"{capacity.lora.precision} LoRA": capacity.lora}


def _verdict(capacity: Capacity) -> str:
    names = _names(capacity)
    # The side that gets further is told first, whichever it is.
    ahead, behind = sorted(names, key=lambda name: names[name].rank, reverse=True)
    trained = _trained(capacity, names[ahead])
    if not capacity.differs:
        return f"both {ahead} and {behind} train {trained}{_most(capacity)}"
    if names[behind].stop is None:
        many = _many(capacity, names[behind])
        fails = f"fits at none of the {many}" if many else "does not fit"
        return f"{ahead} trains {trained} where {behind} {fails}"
    return f"{ahead} trains {trained} where {behind} stops at {_in_unit(capacity.axis, names[behind].stop)}"


def _most(capacity: Capacity) -> str:
    """Say that what both train is the most that was asked of them, where it is."""
    sides = (capacity.qlora, capacity.lora)
    if not capacity.axis or any(side.failing for side in sides):
        return ""
    return ", the most planned for both" if any(side.beyond for side in sides) else ", the most asked for"


def _trained(capacity: Capacity, reach: Reach) -> str:
    if capacity.axis == "model":
        return f"models up to {_in_unit('model', reach.furthest)}"
    at = f" at {_in_unit(capacity.axis, reach.furthest)}" if capacity.axis else ""
    return f"{short_model(capacity.model)}{at}"


def _many(capacity: Capacity, reach: Reach) -> str:
    """Return the values that were planned as '4 lengths'; empty where it was a single one."""
    if reach.asked < 2 or capacity.axis is None:
        return ""
    return f"{reach.asked} {'models' if capacity.axis == 'model' else AXES[capacity.axis][1]}"


def _in_unit(axis: str | None, value: Any) -> str:
    """Return a value of an axis, see `_place`, with its unit; of models the name."""
    if axis == "model":
        return short_model(value[1])
    unit = AXES[axis][0] if axis in AXES else ""
    return f"{unit} {value:,}" if axis == "r" else f"{value:,} {unit}".strip()


def _speed(capacity: Capacity) -> str:
    """Say what QLoRA costs in speed, at the largest setting that both hold and both have a speed of."""
    for value in sorted(set(capacity.qlora.fitting) & set(capacity.lora.fitting), reverse=True):
        ours = _tokens_per_s(capacity.qlora.fitting[value], capacity.gpu)
        theirs = _tokens_per_s(capacity.lora.fitting[value], capacity.gpu)
        if ours and theirs:
            where = f" {_at(capacity.axis, value)}" if capacity.axis and capacity.differs else ""
            return f" {_change(ours / theirs)}{where}."
    return ""


def _at(axis: str | None, value: Any) -> str:
    return f"{'with' if axis == 'model' else 'at'} {_in_unit(axis, value)}"


def _tokens_per_s(result: Result, gpu: str) -> float | None:
    """Return the planned speed on a card, None where the plan has none."""
    speeds = (fit.get("tokens_per_s") for fit in fits_of(result) if fit["gpu"] == gpu)
    return next((speed for speed in speeds if isinstance(speed, (int, float))), None)


def _change(ratio: float) -> str:
    percent = 100 * (1 - ratio)
    if abs(percent) < 1:
        return "QLoRA trains at the same speed"
    return f"QLoRA costs {percent:.0f} % of the speed" if percent > 0 else f"QLoRA is {-percent:.0f} % faster"
