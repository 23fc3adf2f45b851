"""Which results a chart may put side by side: equal in every setting but the ones that it varies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qbench.comparison.results import Result, planned_for
from qbench.scenario.schema import PRECISIONS
from qbench.words.basis import basis, device_text
from qbench.words.settings import describe

Group = list[Result]


def by_device(results: Iterable[Result]) -> list[Group]:
    """Return the results of each device, of one machine each; devices with most results first.

    Where a device was measured on several machines, the one with most results stands for it. What ran on a
    null GPU is with the plans for its card.
    """
    groups: dict[tuple[str | None, str | None], Group] = {}
    for result in results:
        device, card, *_ = planned_for(result)
        groups.setdefault((device, card), []).append(result)
    return sorted((_one_machine(group) for group in groups.values()), key=len, reverse=True)


def group_name(group: Group) -> str:
    """Return the device of a group of `by_device`, as a title names it: cuda, cpu, null GPU RTX 4090."""
    device = next((result.device for result in group if result.device == "null"), group[0].device)
    return " ".join(filter(None, (device_text(device), group[0].latest.card)))


def _one_machine(group: Group) -> Group:
    machines = Counter(result.machine for result in group if result.kind == "measurement")
    if not machines:
        return group
    main = machines.most_common(1)[0][0]
    return [result for result in group if result.kind == "plan" or result.machine == main]


def alike(results: Iterable[Result], *free: str) -> list[Group]:
    """Return the groups of results that are equal in every setting but those named `free`."""
    groups: dict[tuple[Any, ...], Group] = {}
    for result in results:
        key = tuple((name, value) for name, value in result.settings.items() if name not in free)
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def widest(groups: Iterable[Group], count: Callable[[Group], int]) -> Group:
    """Return the group with the highest count, the middle one of equals; empty when there is none."""
    groups = list(groups)
    most = max(map(count, groups), default=0)
    equals = [group for group in groups if count(group) == most]
    return equals[len(equals) // 2] if equals else []


def precisions(group: Iterable[Result]) -> int:
    """Count the precisions in a group."""
    return len({result.point.precision for result in group})


def by_precision(results: Iterable[Result]) -> list[Result]:
    """Return the results in the order in which precisions are always listed."""
    return sorted(results, key=lambda result: PRECISIONS.index(result.point.precision))


def plans_first(results: Sequence[Result]) -> list[Result]:
    """Return the plans, or the measurements where there is no plan."""
    plans = [result for result in results if result.kind == "plan"]
    return plans or list(results)


def conditions(group: Sequence[Result], *free: str) -> str:
    """Return a caption's first sentence: settings that the group shares, and how it was obtained."""
    how = " and ".join(dict.fromkeys(basis(result) for result in group))
    text = describe(group[0].point, free)
    if {"model", "precision"} <= set(free):
        # Otherwise the sentence begins with a name, which stays as it is spelt.
        text = f"{text[0].upper()}{text[1:]}"
    return f"{text}; {how}."
