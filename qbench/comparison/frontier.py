"""Memory against speed over a sweep: which points are worth having, and from where on QLoRA pays on a card.

    frontier(results) -> list[FrontierPoint]    every result that knows both, with whether another beats it
    payoffs(results)  -> list[Payoff]           for each card of the plans: where QLoRA fits and LoRA does not

Results are those of `results.gather`. A point is beaten by another of its model, kind, device and machine
that needs no more memory, is no slower, and is better in one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qbench.comparison.methods import MethodPair, pair_results
from qbench.comparison.results import Result
from qbench.records.fits import Fit

Swept = Literal["seq_len", "r"]
AXES: tuple[Swept, ...] = ("seq_len", "r")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """One result by what it needs and what it gives."""

    result: Result
    metric: str
    """The memory: peak_reserved_bytes where all of its group know it, else peak_allocated_bytes."""
    memory_bytes: float
    tokens_per_s: float
    is_optimal: bool
    """Whether no other point of its group needs less memory without being slower, or is faster in as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payoff:
    """Where QLoRA fits a card on which LoRA does not, along sequence length or rank; all else equal."""

    gpu: str
    model: str
    precision: str
    """That of the quantized base."""
    baseline_precision: str
    axis: Swept
    from_value: int
    """Smallest planned value at which QLoRA fits and LoRA does not."""
    up_to: int
    """Largest planned value at which it does."""
    settings: dict[str, Any]
    """The settings that hold for all of these points, the axis and the precision aside."""
    speed_ratio: tuple[float, float] | None
    """Least and largest QLoRA over LoRA tokens per second, where both fit; None where that is not known."""


def frontier(results: Iterable[Result]) -> list[FrontierPoint]:
    """Return each result that knows memory and speed, in the given order."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        if result.value("tokens_per_s") is not None:
            key = (result.kind, result.device, result.machine, result.point.model)
            groups.setdefault(key, []).append(result)
    return [point for group in groups.values() for point in _of_group(group)]


def _of_group(results: list[Result]) -> list[FrontierPoint]:
    reserved = all(result.value("peak_reserved_bytes") is not None for result in results)
    metric = "peak_reserved_bytes" if reserved else "peak_allocated_bytes"
    known = [
        (result, memory, speed)
        for result in results
        if (memory := result.value(metric)) is not None
        and (speed := result.value("tokens_per_s")) is not None
    ]
    best = _optimal([(memory, speed) for _, memory, speed in known])
    return [
        FrontierPoint(
            result=result,
            metric=metric,
            memory_bytes=memory,
            tokens_per_s=speed,
            is_optimal=(memory, speed) in best,
        )
        for result, memory, speed in known
    ]


def _optimal(pairs: list[tuple[float, float]]) -> set[tuple[float, float]]:
    """Return the (memory, speed) pairs that no other one beats."""
    best: set[tuple[float, float]] = set()
    fastest = float("-inf")
    for memory, speed in sorted(pairs, key=lambda pair: (pair[0], -pair[1])):
        if speed > fastest:
            fastest = speed
            best.add((memory, speed))
    return best


def payoffs(results: Sequence[Result]) -> list[Payoff]:
    """Return, for each card and QLoRA precision, the range in which QLoRA fits and 16-bit LoRA does not."""
    pairs = [pair for pair in pair_results(results) if pair.is_qlora]
    return [found for axis in AXES for found in _along(axis, pairs)]


def _along(axis: Swept, pairs: Sequence[MethodPair]) -> Iterator[Payoff]:
    lines: dict[tuple[Any, ...], list[MethodPair]] = {}
    for pair in pairs:
        others = tuple((name, value) for name, value in pair.baseline.settings.items() if name != axis)
        lines.setdefault((*others, pair.candidate.point.precision), []).append(pair)
    for line in lines.values():
        if len({pair.baseline.settings[axis] for pair in line}) > 1:
            for gpu in _fits(line[0].candidate):
                found = _payoff(axis, gpu, line)
                if found is not None:
                    yield found


def _payoff(axis: Swept, gpu: str, line: Sequence[MethodPair]) -> Payoff | None:
    held = [(pair, _fits(pair.baseline).get(gpu), _fits(pair.candidate).get(gpu)) for pair in line]
    only = [
        pair.candidate.settings[axis]
        for pair, lora, qlora in held
        if lora is not None and qlora is not None and qlora.fits and not lora.fits
    ]
    if not only:
        return None
    ratios = [
        ratio
        for _, lora, qlora in held
        if lora is not None and lora.fits and qlora is not None and (ratio := _speed_ratio(lora, qlora))
    ]
    first = line[0]
    settings = first.baseline.settings
    return Payoff(
        gpu=gpu,
        model=first.baseline.point.model,
        precision=first.candidate.point.precision,
        baseline_precision=first.baseline.point.precision,
        axis=axis,
        from_value=min(only),
        up_to=max(only),
        settings={
            name: value for name, value in settings.items() if name not in (axis, "model", "precision")
        },
        speed_ratio=(min(ratios), max(ratios)) if ratios else None,
    )


def _fits(result: Result) -> dict[str, Fit]:
    """Return each card that a plan was checked against by its name; empty for measurements."""
    return {fit.gpu: fit for fit in result.fits}


def _speed_ratio(lora: Fit, qlora: Fit) -> float | None:
    slow, fast = qlora.tokens_per_s, lora.tokens_per_s
    return slow / fast if slow and fast else None
