"""What a card holds: how far QLoRA and 16-bit LoRA get on it, in sentences computed from plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.compare.headline import describe, short_model
from qbench.compare.methods import BASELINE_PRECISIONS
from qbench.compare.results import Result
from qbench.scenario.schema import QUANTIZED_PRECISIONS
from qbench.units import GIB

PREFERRED = ("nf4-dq", "nf4", "fp4-dq", "fp4", "int8")
"""Quantized precisions, the one that speaks for QLoRA first."""

AXES = {"seq_len": "tokens", "per_device_train_batch_size": "sequences a batch", "r": "rank"}
"""Settings along which it is told how far a method gets, the one that is told first."""


def fits_of(result: Result) -> list[dict[str, Any]]:
    """Return detail.fits as rows; it is a list of rows, or a mapping from GPU to a row or a yes or no."""
    fits = result.detail.get("fits") or []
    if isinstance(fits, dict):
        fits = [
            {"gpu": gpu, **(fit if isinstance(fit, dict) else {"fits": fit})} for gpu, fit in fits.items()
        ]
    return list(fits)


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


def capacity_sentences(results: Sequence[Result]) -> list[str]:
    """Return a sentence for each model whose QLoRA and LoRA plans were held against the same card.

    Of several cards the smallest on which the methods differ is told; where none tells them apart, the
    smallest. Nothing is said where a side is missing.
    """
    by_model: dict[str, list[Result]] = {}
    for result in results:
        if result.kind == "plan" and result.point.lora is not None and fits_of(result):
            by_model.setdefault(result.point.model, []).append(result)
    told = (_telling(capacities(members)) for members in by_model.values())
    return [_sentence(capacity) for capacity in told if capacity is not None]


def capacities(results: Sequence[Result]) -> list[Capacity]:
    """Return the capacity of each card for plans of one model, over the settings with most to tell."""
    axis, group = _widest(results)
    rows: dict[str, dict[str, list[tuple[Any, Result, dict[str, Any]]]]] = {}
    for result in group:
        for fit in fits_of(result):
            value = result.settings.get(axis) if axis else 0
            by_precision = rows.setdefault(fit["gpu"], {})
            by_precision.setdefault(result.point.precision, []).append((value, result, fit))
    found = (_capacity(gpu, axis, by_precision) for gpu, by_precision in rows.items())
    return [capacity for capacity in found if capacity is not None]


def _widest(results: Sequence[Result]) -> tuple[str | None, list[Result]]:
    """Return the first axis that varies among plans equal but for it and the precision, and these plans."""
    for axis in AXES:
        group = max(_sides(results, axis), key=lambda members: _values(members, axis), default=[])
        if _values(group, axis) > 1:
            return axis, group
    return None, next(iter(_sides(results, None)), [])


def _sides(results: Sequence[Result], axis: str | None) -> list[list[Result]]:
    """Return the groups of plans, equal but for axis and precision, in which both methods are."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        key = tuple(item for item in result.settings.items() if item[0] not in ("precision", axis))
        groups.setdefault(key, []).append(result)
    return [members for members in groups.values() if {_side(r) for r in members} >= {"qlora", "lora"}]


def _values(results: Sequence[Result], axis: str) -> int:
    return len({result.settings.get(axis) for result in results})


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


def _telling(found: Sequence[Capacity]) -> Capacity | None:
    smallest_first = sorted(found, key=lambda capacity: capacity.memory_bytes or 0)
    return min(smallest_first, key=lambda capacity: not capacity.differs, default=None)


def _sentence(capacity: Capacity) -> str:
    model, sides = short_model(capacity.model), (capacity.qlora, capacity.lora)
    fitting = [result for side in sides for result in side.fitting.values()]
    if not fitting:
        settings = max(side.asked for side in sides)
        where = f" at any of the {settings} settings planned" if settings > 1 else ""
        methods = f"QLoRA ({capacity.qlora.precision}) nor {capacity.lora.precision} LoRA"
        return f"Neither {methods} of {model} fits on {capacity.card}{where}."
    hidden = ("model", "precision", *([capacity.axis] if capacity.axis else []))
    conditions = f"(planned; {describe(fitting[0], leave_out=hidden)})"
    return f"On {capacity.card} {_verdict(capacity, model)} {conditions}.{_speed(capacity)}"


def _verdict(capacity: Capacity, model: str) -> str:
    names = {f"QLoRA ({capacity.qlora.precision})": capacity.qlora}
    names[f"{capacity.lora.precision} LoRA"] = capacity.lora
    # The side that gets further is told first, whichever it is.
    order = sorted(names, key=lambda name: -_rank(names[name]))
    ahead, behind = order
    furthest, other = names[ahead].furthest, names[behind].furthest
    at = f" at {_amount(capacity.axis, furthest)}" if capacity.axis else ""
    if furthest == other:
        longest = ", the most that was planned" if capacity.axis and _all_fit(capacity) else ""
        return f"both {ahead} and {behind} train {model}{at}{longest}"
    if other is None:
        where = f" at any of the {names[behind].asked} planned" if names[behind].asked > 1 else ""
        return f"{ahead} trains {model}{at} where {behind} does not fit{where}"
    return f"{ahead} trains {model}{at} where {behind} stops at {_amount(capacity.axis, other)}"


def _rank(reach: Reach) -> float:
    return -1 if reach.furthest is None else float(reach.furthest)


def _all_fit(capacity: Capacity) -> bool:
    return all(len(reach.fitting) == reach.asked for reach in (capacity.qlora, capacity.lora))


def _amount(axis: str | None, value: Any) -> str:
    if axis == "r":
        return f"rank {value:,}"
    return f"{value:,} {AXES.get(axis or '', '')}".strip()


def _speed(capacity: Capacity) -> str:
    """Say what QLoRA costs in speed, at the largest setting that both hold and both have a speed of."""
    for value in sorted(set(capacity.qlora.fitting) & set(capacity.lora.fitting), reverse=True):
        ours = _tokens_per_s(capacity.qlora.fitting[value], capacity.gpu)
        theirs = _tokens_per_s(capacity.lora.fitting[value], capacity.gpu)
        if ours and theirs:
            at = f" at {_amount(capacity.axis, value)}" if capacity.axis and capacity.differs else ""
            return f" {_change(ours / theirs)}{at}."
    return ""


def _tokens_per_s(result: Result, gpu: str) -> float | None:
    """Return the planned speed on a card, None where the plan has none."""
    speeds = (fit.get("tokens_per_s") for fit in fits_of(result) if fit["gpu"] == gpu)
    return next((speed for speed in speeds if isinstance(speed, (int, float))), None)


def _change(ratio: float) -> str:
    percent = 100 * (1 - ratio)
    if abs(percent) < 1:
        return "QLoRA trains at the same speed"
    return f"QLoRA costs {percent:.0f} % of the speed" if percent > 0 else f"QLoRA is {-percent:.0f} % faster"
