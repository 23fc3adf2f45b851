"""Families of points, cut where their samples show a change, and the numbers of each part as polynomials.

`shared` says what that assumes, and how each assumption is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qbench.errors import StepError
from qbench.memory.history.events import Ints
from qbench.memory.work.columns import WorkColumns
from qbench.planner.account import Account
from qbench.planner.families import RANK_GRAIN, Sizes, resized
from qbench.planner.lengths import WorkedOut
from qbench.planner.sampling import SampledSizes, choose_samples, combined
from qbench.records.ranks import Collective
from qbench.scenario.schema import Point

WORTH_SAMPLES = 1.5
"""A part must have so many times more points than samples, both not recorded yet; else each is recorded."""

_FACTS = ("trainable_params", "total_params")
"""Facts of a model that differ within a family; the others must not."""

RecordPoint = Callable[[Point], Account]
Measure = Callable[[Sizes], int]


def length_of(sizes: Sizes) -> int:
    """Return the tokens of a sequence."""
    return sizes[1]


def tokens_of(sizes: Sizes) -> int:
    """Return the tokens of a batch."""
    return sizes[1] * sizes[2]


def batch_of(sizes: Sizes) -> int:
    """Return the sequences of a batch."""
    return sizes[2]


def rank_of(sizes: Sizes) -> int:
    """Return the rank of the adapters."""
    return sizes[0]


MEASURES: tuple[Measure, ...] = (length_of, tokens_of, batch_of, rank_of)
"""What choices depend on, in the order in which cuts that tell as much are tried."""


class Parts:
    """A family of points, cut where its samples show that something changes; each part shares its work."""

    def __init__(self, point: Point, sizes: frozenset[Sizes], record: RecordPoint) -> None:
        self._point = point
        self._record = record
        self._recorded: dict[Sizes, Account] = {}
        self._families: list[Family] = []
        with contextlib.suppress(StepError):  # The points will say themselves why.
            self._share(sizes)

    def account(self, sizes: Sizes) -> Account | None:
        """Return the account of a point of the family; None where it has to be recorded."""
        if sizes in self._recorded:
            return self._recorded[sizes]
        return next((family.account(sizes) for family in self._families if sizes in family.members), None)

    def family_with(self, *several: Sizes) -> Family | None:
        """Return the family that all of several sizes are members of; None if there is none."""
        return next((family for family in self._families if family.members.issuperset(several)), None)

    def account_of(self, sizes: Sizes) -> Account:
        """Return the account of a point that is recorded for it. Raises StepError."""
        if sizes not in self._recorded:
            self._recorded[sizes] = self._record(resized(self._point, sizes))
        return self._recorded[sizes]

    def _share(self, members: frozenset[Sizes]) -> None:
        """Sample some of the family, and where they are not alike, each side of the change for itself."""
        left = [sizes for sizes in members if sizes not in self._recorded]
        if not left:
            return
        samples = choose_samples(members)
        unknown = [sizes for sizes in samples.sizes if sizes not in self._recorded]
        if len(left) < WORTH_SAMPLES * len(unknown):
            return
        family = Family(members, samples, {sizes: self.account_of(sizes) for sizes in samples.sizes})
        if family.is_regular():
            self._families.append(family)
            return
        cut = family.change(self.account_of)
        if cut is not None:
            self._share(frozenset(sizes for sizes in members if cut.is_before(sizes)))
            self._share(frozenset(sizes for sizes in members if not cut.is_before(sizes)))


class Cut(NamedTuple):
    """Where a family changes: from this value of a measure on."""

    measure: Measure
    start: int

    def is_before(self, sizes: Sizes) -> bool:
        """Say on which side sizes are."""
        return self.measure(sizes) < self.start


class Family:
    """The accounts of some points of a family, which tell those of the others."""

    def __init__(
        self, members: frozenset[Sizes], samples: SampledSizes, recorded: Mapping[Sizes, Account]
    ) -> None:
        self.members = members
        self._samples = samples
        self._recorded = dict(recorded)
        self._numbers = {sizes: _numbers(account) for sizes, account in recorded.items()}
        self._model = recorded[samples.sizes[0]]

    def is_regular(self) -> bool:
        """Say whether the samples are alike, and the polynomials of the first ones fit the others."""
        return not any(self._kinds()) and all(map(self._fits, self._samples.checks))

    def change(self, account_of: Callable[[Sizes], Account]) -> Cut | None:
        """Return where the samples change; None where all their sizes are one.

        The samples of the highest rank may be the longest ones, and then do not say which of the two it is;
        so a short one is asked for.
        """
        apart = max(self.members, key=lambda sizes: (sizes[0], -sizes[1], -sizes[2]))
        self._recorded[apart] = account_of(apart)
        self._numbers[apart] = _numbers(self._recorded[apart])
        cuts = [
            Cut(measure, start)
            for measure in MEASURES
            for start in sorted({measure(sizes) for sizes in self._samples.sizes})[1:]
        ]
        kinds = self._kinds()
        if any(kinds):
            return min(
                cuts, key=lambda cut: (self._num_mixed(cut, kinds), self._num_undecided(cut.measure, kinds))
            )
        # Which numbers are no polynomials is known, but not from where on: half of the values are tried.
        measure = self._measure_of_misfits()
        found = [cut for cut in cuts if cut.measure is measure]
        return found[len(found) // 2] if found else None

    def account(self, sizes: Sizes) -> Account | None:
        """Return the account of a point of the family; None where it has to be recorded."""
        if sizes in self._recorded:
            return self._recorded[sizes]
        if not self.is_between(sizes):
            return None
        numbers = self._worked_out(sizes)
        return None if numbers is None else self.with_numbers(numbers)

    def with_numbers(self, numbers: Ints) -> Account:
        """Return the account of a point with these numbers."""
        return _with_numbers(self._model, numbers)

    def numbers_of(self, account: Account) -> Ints | None:
        """Return the numbers of a point that was recorded; None where other things happen in it."""
        return _numbers(account) if _are_alike(account, self._model) else None

    def numbers_at(self, sizes: Sizes, other_length: int) -> WorkedOut | None:
        """Return the numbers at sizes as the polynomials have them; see `lengths.Regular`."""
        basis = self._samples.sizes[: self._samples.num_basis]
        return combined([self._numbers[one] for one in basis], *self._samples.weights(sizes, other_length))

    def _fits(self, sizes: Sizes) -> bool:
        numbers = self._worked_out(sizes)
        return numbers is not None and np.array_equal(numbers, self._numbers[sizes])

    def _kinds(self) -> list[int]:
        """Return a number for each sample, the same for those in which the same things happen."""
        firsts: list[Account] = []
        kinds = []
        for account in self._recorded.values():
            kind = next((at for at, first in enumerate(firsts) if _are_alike(account, first)), len(firsts))
            if kind == len(firsts):
                firsts.append(account)
            kinds.append(kind)
        return kinds

    def _num_mixed(self, cut: Cut, kinds: Sequence[int]) -> int:
        """Return how many samples are not of the kind that most on their side of a cut are of."""
        sides: tuple[list[int], list[int]] = ([], [])
        for sizes, kind in zip(self._recorded, kinds, strict=True):
            sides[cut.is_before(sizes)].append(kind)
        return sum(len(side) - max(map(side.count, side)) for side in sides)

    def _num_undecided(self, measure: Measure, kinds: Sequence[int]) -> int:
        """Return how many values of a measure do not tell the kind: samples of several have that value.

        The largest samples are large in all measures, so cuts by any of them may part the samples as well.
        """
        found: dict[int, set[int]] = {}
        for sizes, kind in zip(self._recorded, kinds, strict=True):
            found.setdefault(measure(sizes), set()).add(kind)
        return sum(len(of_value) > 1 for of_value in found.values())

    def _measure_of_misfits(self) -> Measure:
        """Return the rank where all numbers that do not fit depend on it alone, else a length."""
        misfits: NDArray[np.bool_] = np.zeros(len(self._numbers[self._samples.sizes[0]]), dtype=bool)
        for sizes in self._samples.checks:
            expected = self._worked_out(sizes)
            misfits |= True if expected is None else expected != self._numbers[sizes]
        of_rank: dict[int, Ints] = {}
        for sizes, numbers in self._numbers.items():
            if not np.array_equal(of_rank.setdefault(sizes[0], numbers[misfits]), numbers[misfits]):
                return next(measure for measure in MEASURES if len(set(map(measure, self.members))) > 1)
        return rank_of

    def is_between(self, sizes: Sizes) -> bool:
        """Say whether no rounding can tell these sizes from the sampled ones."""
        ranks, _, batches = (self._samples.values(axis) for axis in range(3))
        return (sizes[0] in ranks or sizes[0] % RANK_GRAIN == 0) and sizes[2] in batches

    def _worked_out(self, sizes: Sizes) -> Ints | None:
        found = self.numbers_at(sizes, sizes[1])
        return None if found is None or not found[1].all() else found[0]


def _numbers(account: Account) -> Ints:
    """Return all that differs within a family: facts, bytes, allocations, what operators cost."""
    facts = [getattr(account.facts, name) for name in _FACTS]
    sent = [each["bytes"] for each in account.collectives]
    few = np.array([*facts, account.managed_bytes, *sent], dtype=np.int64)
    work = () if account.work is None else (account.work.sizes.ravel(),)
    return np.concatenate([few, account.asked, *work])


def _with_numbers(account: Account, numbers: Ints) -> Account:
    """Return an account with other numbers, in the order of `_numbers`."""
    few = len(_FACTS) + 1 + len(account.collectives)
    values, rest = numbers[:few].tolist(), numbers[few:]
    sent = zip(account.collectives, values[len(_FACTS) + 1 :], strict=True)
    asked, sizes = rest[: len(account.asked)], rest[len(account.asked) :]
    return replace(
        account,
        facts=replace(account.facts, **dict(zip(_FACTS, values, strict=False))),
        managed_bytes=values[len(_FACTS)],
        collectives=tuple({**each, "bytes": num_bytes} for each, num_bytes in sent),
        asked=asked,
        work=None if account.work is None else account.work.resized(sizes),
    )


def _are_alike(account: Account, first: Account) -> bool:
    return (
        replace(account.facts, **{name: getattr(first.facts, name) for name in _FACTS}) == first.facts
        and account.attention == first.attention
        and account.has_stacked_experts == first.has_stacked_experts
        and _without_bytes(account.collectives) == _without_bytes(first.collectives)
        and account.outline.same_as(first.outline)
        and _work_alike(account.work, first.work)
    )


def _without_bytes(collectives: Sequence[Collective]) -> list[Collective]:
    return [{**each, "bytes": 0} for each in collectives]


def _work_alike(work: WorkColumns | None, first: WorkColumns | None) -> bool:
    return first is None if work is None else first is not None and work.same_as(first)
