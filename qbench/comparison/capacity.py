"""How far QLoRA and 16-bit LoRA get on a card, and which of the two gets further, computed from plans."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.comparison.methods import BASELINE_PRECISIONS, MANY_MODELS, PREFERRED
from qbench.comparison.results import Result
from qbench.records.fits import Fit
from qbench.scenario.schema import QUANTIZED_PRECISIONS

AXES = ("seq_len", "per_device_train_batch_size", "r")
"""Settings along which methods are compared, the preferred one first."""

MOST_CARDS = 3
"""Cards compared when there are many models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far one precision gets on one card, along one setting."""

    precision: str
    fitting: dict[Any, Result]
    """The plans that the card holds and whose values the other side has plans of, by the value."""
    failing: dict[Any, Result]
    """Those that it does not hold."""
    alone: dict[Any, bool]
    """The values that the other side has no plan of, and whether the card holds their plans."""

    @property
    def asked(self) -> int:
        """The number of values that both sides have plans of."""
        return len(self.fitting.keys() | self.failing.keys())

    @property
    def furthest(self) -> Any:
        """The largest value that fits, of those that both sides have plans of; None when none does."""
        return max(self.fitting, default=None)

    @property
    def rank(self) -> tuple[bool, Any]:
        """What orders two sides by their furthest value; below all others where nothing fits."""
        return self.furthest is not None, self.furthest

    @property
    def stop(self) -> Any:
        """The largest value that fits, those of this side alone included up to what fails; or None."""
        alone = [v for v, fits in self.alone.items() if fits and all(v < failed for failed in self.failing)]
        return max([*self.fitting, *alone], default=None)

    @property
    def beyond(self) -> tuple[Any, bool] | None:
        """What a plan of this side alone adds: a larger value and whether it fits; None where nothing.

        It is the largest that fits, else the smallest that does not, unless the side stopped before.
        """
        larger = {value: fits for value, fits in self.alone.items() if (True, value) > self.rank}
        fitting = [value for value, fits in larger.items() if fits]
        if fitting:
            return max(fitting), True
        return (min(larger), False) if larger and not self.failing else None


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
    def differs(self) -> bool:
        """Say whether one method gets further than the other."""
        return bool(self.qlora.furthest != self.lora.furthest)

    @property
    def ahead(self) -> str | None:
        """The method that gets further, qlora or lora; None where both get as far."""
        if not self.differs:
            return None
        return "qlora" if self.qlora.rank > self.lora.rank else "lora"


def telling(results: Sequence[Result]) -> list[Capacity]:
    """Return what QLoRA and LoRA plans checked against the same cards show, differences first.

    For each model the smallest card on which QLoRA gets further, and the smallest on which LoRA does; where
    no card tells them apart, the smallest that holds anything, else the largest. Of many models the largest
    that each method trains is told instead, card by card. Nothing is told where a side is missing.
    """
    by_model: dict[str, list[Result]] = {}
    for result in results:
        if result.kind == "plan" and result.point.lora is not None and result.fits:
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
    rows: dict[str, dict[str, list[tuple[Any, Result, Fit]]]] = {}
    for result in group:
        for fit in result.fits:
            by_precision = rows.setdefault(fit.gpu, {})
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
    gpu: str, axis: str | None, by_precision: dict[str, list[tuple[Any, Result, Fit]]]
) -> Capacity | None:
    values = {precision: {value for value, *_ in rows} for precision, rows in by_precision.items()}
    # Only what was planned for both is compared: a side does not stop where nobody asked any further.
    qlora, lora, both = _compared(values)
    if not both:
        return None
    memory = next((fit.memory_bytes for _, _, fit in by_precision[qlora]), None)
    return Capacity(
        model=by_precision[qlora][0][1].point.model,
        gpu=gpu,
        memory_bytes=memory,
        axis=axis,
        qlora=_reach(qlora, by_precision[qlora], both),
        lora=_reach(lora, by_precision[lora], both),
    )


def _reach(precision: str, rows: Sequence[tuple[Any, Result, Fit]], both: set[Any]) -> Reach:
    asked = [row for row in rows if row[0] in both]
    return Reach(
        precision=precision,
        fitting={value: result for value, result, fit in asked if fit.fits},
        failing={value: result for value, result, fit in asked if not fit.fits},
        alone={value: fit.fits for value, _, fit in rows if value not in both},
    )
