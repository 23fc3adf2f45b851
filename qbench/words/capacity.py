"""How far QLoRA and 16-bit LoRA get on a card, in sentences."""

from __future__ import annotations

from typing import Any

from qbench.comparison.capacity import Capacity, Reach
from qbench.comparison.results import Result
from qbench.units import GIB
from qbench.words.phrases import Statement
from qbench.words.settings import describe, short_model

_AXES = {
    "seq_len": ("tokens", "lengths"),
    "per_device_train_batch_size": ("sequences per batch", "batch sizes"),
    "r": ("rank", "ranks"),
}
"""By setting: its unit, and the noun for several values."""


def sentence(capacity: Capacity) -> Statement:
    """Return how far both methods get on the card, what QLoRA costs in speed, and what one side has alone."""
    fitting = [result for side in (capacity.qlora, capacity.lora) for result in side.fitting.values()]
    if not fitting:
        return Statement(_neither(capacity), *_beyond(capacity))
    hidden = ("model", "precision", *([capacity.axis] if capacity.axis else []))
    conditions = f"(planned; {describe(fitting[0].point, hidden)})"
    lead = f"On {_card(capacity)} {_who_gets_further(capacity)} {conditions}."
    return Statement(lead, _speed(capacity), *_beyond(capacity))


def _neither(capacity: Capacity) -> str:
    of = "" if capacity.axis == "model" else f" of {short_model(capacity.model)}"
    many = _many(capacity, capacity.qlora)
    alone = capacity.qlora.alone or capacity.lora.alone
    at = f" at any of the {many} planned{' for both' if alone else ''}" if many else ""
    if alone and not many:
        at = "".join(f" {_at(capacity.axis, value)}" for value in capacity.qlora.failing)
    return f"Neither {' nor '.join(_names(capacity))}{of} fits on {_card(capacity)}{at}."


def _beyond(capacity: Capacity) -> list[str]:
    """Say what fits, or does not, of the plans that one side has alone."""
    names = list(_names(capacity).items())
    texts: list[str] = []
    for (name, side), (other, further) in zip(names, reversed(names), strict=True):
        if side.beyond is not None:
            value, fits = side.beyond
            if side.rank < further.rank and value == side.stop:
                continue  # The lead says that it stops there.
            verb, at = "fit", _at(capacity.axis, value)
            if capacity.axis == "model":
                verb, at = "train", _in_unit("model", value)
            also = "also " if side.fitting else ""
            does = f"{also}{verb}s" if fits else f"does not {verb}"
            texts.append(f"{name} {does} {at}, which was not planned for {other}.")
    return texts


def _names(capacity: Capacity) -> dict[str, Reach]:
    names = {f"QLoRA ({capacity.qlora.precision})": capacity.qlora}
    return names | {f"{capacity.lora.precision} LoRA": capacity.lora}


def _who_gets_further(capacity: Capacity) -> str:
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
    """Say if what both train is the largest value that was planned."""
    sides = (capacity.qlora, capacity.lora)
    if not capacity.axis or any(side.failing for side in sides):
        return ""
    return ", the largest planned for both" if any(side.beyond for side in sides) else ", the largest planned"


def _trained(capacity: Capacity, reach: Reach) -> str:
    if capacity.axis == "model":
        return f"models up to {_in_unit('model', reach.furthest)}"
    at = f" at {_in_unit(capacity.axis, reach.furthest)}" if capacity.axis else ""
    return f"{short_model(capacity.model)}{at}"


def _many(capacity: Capacity, reach: Reach) -> str:
    """Return the values that were planned as '4 lengths'; empty where it was a single one."""
    if reach.asked < 2 or capacity.axis is None:
        return ""
    return f"{reach.asked} {'models' if capacity.axis == 'model' else _AXES[capacity.axis][1]}"


def _in_unit(axis: str | None, value: Any) -> str:
    """Return a value of an axis, see `_place`, with its unit; of models the name."""
    if axis == "model":
        return short_model(value[1])
    unit = _AXES[axis][0] if axis in _AXES else ""
    return f"{unit} {value:,}" if axis == "r" else f"{value:,} {unit}".strip()


def _speed(capacity: Capacity) -> str:
    """Say what QLoRA costs in speed, at the largest setting that both hold and both have a speed of."""
    for value in sorted(set(capacity.qlora.fitting) & set(capacity.lora.fitting), reverse=True):
        ours = _tokens_per_s(capacity.qlora.fitting[value], capacity.gpu)
        theirs = _tokens_per_s(capacity.lora.fitting[value], capacity.gpu)
        if ours and theirs:
            where = f" {_at(capacity.axis, value)}" if capacity.axis and capacity.differs else ""
            return f"{_change(ours / theirs)}{where}."
    return ""


def _at(axis: str | None, value: Any) -> str:
    return f"{'with' if axis == 'model' else 'at'} {_in_unit(axis, value)}"


def _tokens_per_s(result: Result, gpu: str) -> float | None:
    """Return the planned speed on a card, None where the plan has none."""
    speeds = (fit.tokens_per_s for fit in result.fits if fit.gpu == gpu)
    return next((speed for speed in speeds if isinstance(speed, (int, float))), None)


def _change(ratio: float) -> str:
    percent = 100 * (1 - ratio)
    if abs(percent) < 1:
        return "QLoRA trains at the same speed"
    return f"QLoRA costs {percent:.0f} % of the speed" if percent > 0 else f"QLoRA is {-percent:.0f} % faster"


def _card(capacity: Capacity) -> str:
    """Return the card with the memory that is left to a process."""
    memory = capacity.memory_bytes
    return f"{capacity.gpu} ({memory / GIB:.1f} GiB)" if memory else capacity.gpu
