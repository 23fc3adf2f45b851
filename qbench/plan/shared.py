"""Traces of many points for the price of a few: the others' sizes follow from those that were recorded.

Of points that differ in rank, sequence length and batch size alone, the same operators run in the same order
on the same modules; only the bytes differ, each a polynomial of the three (`sampling`). So some points of a
family are recorded, and an account of any other has their outline and the polynomials' values. All else is
done for each point: replaying the allocator, finding the peak, holding it against cards.

That is exact where its assumptions hold, and each is checked, or kept by construction:

- same events: the outlines of all samples are equal; else nothing is shared;
- polynomials: samples beyond those that determine them fit each allocation's bytes to the byte, and every
  number comes out whole; the samples are chosen so that a jump or a bend between them would not fit;
- between samples, choices change at thresholds: those by rounding are kept out by the grains of `families`,
  and those by size (bitsandbytes' 4-bit product, optimizers' 4096 and 100,000 elements, the window of an
  attention) change once as a size grows, so that no two samples on both sides of one agree;
- batch sizes, of which there are few, are all sampled; nothing is worked out beyond the largest sample.

Whatever fails a check is recorded on its own, as if there were no family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from qbench.errors import StepError
from qbench.memory.allocator import AllocatorConfig
from qbench.memory.choices import Card
from qbench.memory.outline import Ints
from qbench.plan.account import Account
from qbench.plan.families import RANK_GRAIN, Sizes, family_of, resized, sizes_of
from qbench.plan.sampling import Samples, choose_samples, combined
from qbench.plan.trace import Trace, record_account, trace_of
from qbench.scenario.schema import Device, Point
from qbench.step.model import load_config

WORTH_SAMPLES = 1.5
"""A family must have so many times more points than samples; fewer are recorded each for itself."""

_FACTS = ("trainable_params", "total_params")
"""Facts of a model that differ within a family; the others must not."""

Record = Callable[[Point], Account]


class SharedTraces:
    """Traces points that are known in advance; called like `trace`, and gives what it gives."""

    def __init__(self, points: Iterable[Point]) -> None:
        by_family: dict[str, list[Point]] = {}
        for point in points:
            by_family.setdefault(family_of(point), []).append(point)
        self._members = by_family
        self._families: dict[tuple[str, Device, Card], Family | None] = {}

    def __call__(self, point: Point, device: Device, card: Card, allocator: AllocatorConfig) -> Trace:
        """Return the trace of one of the points. Raises StepError when its step cannot be built."""
        config = load_config(point)
        family = self._family(point, device, card)
        account = None if family is None else family.account(sizes_of(point))
        if account is None:
            account = record_account(point, device, config, card)
        return trace_of(account, point, device, config, allocator)

    def _family(self, point: Point, device: Device, card: Card) -> Family | None:
        key = (family_of(point), device, card)
        if key not in self._families:
            members = self._members.get(key[0], [])

            def record(one: Point) -> Account:
                return record_account(one, device, load_config(one), card)

            self._families[key] = sampled_family(members, record)
        return self._families[key]


def sampled_family(members: list[Point], record: Record) -> Family | None:
    """Return the family of these points, None where sharing is not worth it or would not be exact."""
    if not members:
        return None
    samples = choose_samples(map(sizes_of, members))
    if len(members) < WORTH_SAMPLES * len(samples.sizes):
        return None
    try:
        recorded = {sizes: record(resized(members[0], sizes)) for sizes in samples.sizes}
    except StepError:
        return None  # The points will say themselves why.
    family = Family(samples, recorded)
    return family if family.is_regular() else None


class Family:
    """The accounts of some points of a family, which tell those of the others."""

    def __init__(self, samples: Samples, recorded: dict[Sizes, Account]) -> None:
        self._samples = samples
        self._recorded = recorded
        self._numbers = {sizes: _numbers(account) for sizes, account in recorded.items()}
        self._model = recorded[samples.sizes[0]]

    def is_regular(self) -> bool:
        """Say whether the samples are alike, and the polynomials of the first ones fit the others."""
        checks = self._samples.sizes[self._samples.num_basis :]
        return all(map(self._is_like, self._recorded.values())) and all(map(self._fits, checks))

    def account(self, sizes: Sizes) -> Account | None:
        """Return the account of a point of the family; None where it has to be recorded."""
        if sizes in self._recorded:
            return self._recorded[sizes]
        if not self._is_between(sizes):
            return None
        numbers = self._worked_out(sizes)
        if numbers is None:
            return None
        asked, rest = numbers[: -1 - len(_FACTS)], numbers[-1 - len(_FACTS) :].tolist()
        facts = replace(self._model.facts, **dict(zip(_FACTS, rest, strict=False)))
        return replace(self._model, facts=facts, asked=asked, managed_bytes=rest[-1])

    def _fits(self, sizes: Sizes) -> bool:
        numbers = self._worked_out(sizes)
        return numbers is not None and np.array_equal(numbers, self._numbers[sizes])

    def _is_like(self, account: Account) -> bool:
        first = self._model
        return (
            replace(account.facts, **{name: getattr(first.facts, name) for name in _FACTS}) == first.facts
            and account.attention == first.attention
            and account.has_stacked_experts == first.has_stacked_experts
            and account.outline.same_as(first.outline)
        )

    def _is_between(self, sizes: Sizes) -> bool:
        """Say whether no rounding can tell these sizes from the sampled ones."""
        ranks, _, batches = (self._samples.values(axis) for axis in range(3))
        return (sizes[0] in ranks or sizes[0] % RANK_GRAIN == 0) and sizes[2] in batches

    def _worked_out(self, sizes: Sizes) -> Ints | None:
        basis = self._samples.sizes[: self._samples.num_basis]
        return combined([self._numbers[sample] for sample in basis], *self._samples.weights(sizes))


def _numbers(account: Account) -> Ints:
    """Return all that differs within a family: bytes of allocations, facts, and managed bytes."""
    facts = [getattr(account.facts, name) for name in _FACTS]
    return np.concatenate([account.asked, np.array([*facts, account.managed_bytes], dtype=np.int64)])
