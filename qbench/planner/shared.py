"""Traces of many points for the price of a few: the others' sizes follow from those that were recorded.

Of points that differ in rank, sequence length and batch size alone, the same operators run in the same order
on the same modules; only bytes and shapes differ, each number a polynomial of the three (`sampling`). So some
points of a family are recorded, and an account of any other has their outline and the polynomials' values.
All else is done for each point: replaying the allocator, finding the peak, holding it against cards, adding
up what operators take.

That is exact where its assumptions hold, and each is checked, or kept by construction:

- same events: the outlines of all samples are equal, and where times are planned the operators that ran; else
  the family is cut where they differ, and each part is a family of its own, with samples and checks of its
  own;
- polynomials: samples beyond those that determine them fit the bytes of each allocation, and the bytes and
  the shape of each operator, to the unit, and every number comes out whole; the samples are chosen so that a
  jump or a bend between them would not fit;
- between samples, choices change at thresholds: those by rounding are told apart by `lengths`, or kept out by
  the grain of ranks, and those by size (bitsandbytes' 4-bit product from 17 tokens on, optimizers' 4096 and
  100,000 elements, the window of an attention) change once as a size grows, so that no two samples on both
  sides of one agree;
- batch sizes, of which there are few, are all sampled; nothing is worked out beyond the largest sample.

A part that fails a check is cut again, until too few points are left: those are recorded each on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qbench.errors import StepError
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.kernels.choices import Card
from qbench.memory.kernels.shared_by_card import ByCard
from qbench.planner.account import Account
from qbench.planner.families import LENGTH_GRAIN, Sizes, family_of, resized, sizes_of
from qbench.planner.lengths import Forms, around, to_record
from qbench.planner.parts import WORTH_SAMPLES, Family, Parts, RecordPoint
from qbench.planner.sampling import choose_samples
from qbench.planner.trace import Trace, record_account, trace_of
from qbench.scenario.schema import Device, Point
from qbench.step.model import load_config


class SharedTraces:
    """Traces points that are known in advance."""

    def __init__(self, points: Iterable[Point]) -> None:
        by_family: dict[str, list[Point]] = {}
        for point in points:
            by_family.setdefault(family_of(point), []).append(point)
        self._members = by_family
        self._parts: dict[tuple[str, Device, bool, int], ByCard[AnyLength]] = {}

    def __call__(
        self,
        point: Point,
        device: Device,
        cards: Sequence[Card],
        allocator: AllocatorConfig,
        *,
        with_costs: bool = False,
        rank: int = 0,
    ) -> dict[Card, Trace | StepError]:
        """Return the trace of one of the points on each card, or why there is none.

        Cards that choose the same kernels share one. `with_costs` takes down what operators cost. `rank` is
        the process of several GPUs.
        """
        parts_on = self._parts_on(point, device, with_costs, rank)
        parts = {card: parts_on(card) for card in cards}
        known = {each: each.account(sizes_of(point)) for each in set(parts.values())}

        def alone(card: Card) -> Account | StepError:
            try:
                return _recorded(point, device, card, with_costs, rank)
            except StepError as error:
                return error

        alone_on = ByCard(alone)
        traced: dict[int, Trace] = {}
        found: dict[Card, Trace | StepError] = {}
        for card in cards:
            account = known[parts[card]] or alone_on(card)
            if isinstance(account, StepError):
                found[card] = account
                continue
            if id(account) not in traced:
                traced[id(account)] = trace_of(account, point, device, load_config(point), allocator)
            found[card] = traced[id(account)]
        return found

    def _parts_on(self, point: Point, device: Device, with_costs: bool, rank: int) -> ByCard[AnyLength]:
        key = (family_of(point), device, with_costs, rank)
        if key not in self._parts:
            members = self._members.get(key[0], [point])

            def of_card(card: Card) -> AnyLength:
                return AnyLength(members, lambda one: _recorded(one, device, card, with_costs, rank))

            self._parts[key] = ByCard(of_card)
        return self._parts[key]


def _recorded(point: Point, device: Device, card: Card, with_costs: bool, rank: int) -> Account:
    return record_account(point, device, load_config(point), card, with_costs=with_costs, rank=rank)


class AnyLength:
    """A family of points whose lengths may have any remainder: one family, or one for each remainder."""

    def __init__(self, members: Sequence[Point], record: RecordPoint) -> None:
        self._point, self._record = members[0], record
        self._recorded: dict[Sizes, Account] = {}
        self._forms: dict[Family, Forms | None] = {}
        sizes = frozenset(map(sizes_of, members))
        between = sorted(one for one in sizes if one[1] % LENGTH_GRAIN)
        aligned = frozenset((one[0], length, one[2]) for one in sizes for length in around(one[1]) if length)
        by_remainder: dict[int, set[Sizes]] = {}
        for one in sizes:
            by_remainder.setdefault(one[1] % LENGTH_GRAIN, set()).add(one)
        first = to_record(between)
        self._together: Parts | None = None
        self._apart: dict[int, Parts] = {}
        if len(by_remainder) > 1 and len(sizes) >= WORTH_SAMPLES * (
            len(choose_samples(aligned).sizes) + len(first)
        ):
            self._together = Parts(self._point, aligned, record)
            for one in first:
                self._learnt(one)
        else:
            self._apart = {
                rest: Parts(self._point, frozenset(alike), record) for rest, alike in by_remainder.items()
            }

    def account(self, sizes: Sizes) -> Account | None:
        """Return the account of a point of the family; None where it has to be recorded."""
        if self._together is None:
            return self._apart[sizes[1] % LENGTH_GRAIN].account(sizes)
        if sizes[1] % LENGTH_GRAIN == 0:
            return self._together.account(sizes)
        if sizes in self._recorded:
            return self._recorded[sizes]
        family = self._family_of(sizes)
        forms = None if family is None else self._forms.get(family)
        numbers = None if forms is None else forms.numbers(sizes)
        if family is None or numbers is None:
            return self._learnt(sizes)
        return family.with_numbers(numbers)

    def _family_of(self, sizes: Sizes) -> Family | None:
        assert self._together is not None
        rank, length, batch = sizes
        family = self._together.family_with(*((rank, end, batch) for end in around(length)))
        return family if family is not None and family.is_between(sizes) else None

    def _learnt(self, sizes: Sizes) -> Account | None:
        """Record a point and return its account, which tells the forms of numbers; None where it fails."""
        try:
            account = self._recorded[sizes] = self._record(resized(self._point, sizes))
        except StepError:
            return None
        family = self._family_of(sizes)
        if family is not None:
            numbers = family.numbers_of(account)
            forms = self._forms.setdefault(family, Forms(family))
            if forms is not None and numbers is not None and not forms.learn(sizes, numbers):
                self._forms[family] = None  # Something else happens between lengths: each is recorded.
        return account
