"""Sizes at lengths between those of a family: each number follows the length as it is, or rounded up.

A family's polynomials are sampled at lengths that are multiples of `LENGTH_GRAIN`. Of another length, kernels
take some tensors as long as it is and round others up to a multiple of a power of two. At multiples of the
grain all of that is one, so the same polynomial says both; which length goes into it is a number's form.

Points of the family with such lengths are recorded, and a number's forms are those that give the recorded
value, of which there must be one for each number at every recorded point. Of another point all forms that a
number still has must agree; else it is recorded, too, and tells more about them. A length takes part only
where one divided by the same power of two was recorded: tensors that are padded are events that others lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qbench.memory.history.events import Ints
from qbench.planner.families import LENGTH_GRAIN, Sizes
from qbench.units import round_up

Form = tuple[int, int]
"""What a length is rounded up to, and what one factor of its square is."""

_POWERS = tuple(1 << power for power in range(LENGTH_GRAIN.bit_length()))
FORMS: tuple[Form, ...] = (*((grain, grain) for grain in _POWERS), *((1, grain) for grain in _POWERS[1:]))
"""Rounded or not, throughout or, as a mask whose rows are padded, in one factor of the square."""

LEAST_RECORDED = 2
"""Points between lengths to be recorded before others of their family are worked out."""

WorkedOut = tuple[Ints, NDArray[np.bool_]]
"""Numbers, and which of them came out whole."""


class Regular(Protocol):
    """A family whose polynomials are known."""

    def numbers_at(self, sizes: Sizes, other_length: int) -> WorkedOut | None:
        """Return the numbers at sizes, with another length in one factor of a square; None: too large."""


def around(length: int) -> tuple[int, int]:
    """Return the multiples of the grain that a length is between; twice itself where it is one."""
    return length // LENGTH_GRAIN * LENGTH_GRAIN, round_up(length, LENGTH_GRAIN)


def alignment(length: int) -> int:
    """Return the largest power of two, up to the grain, that divides a length."""
    return min(length & -length, LENGTH_GRAIN)


def to_record(members: Sequence[Sizes]) -> list[Sizes]:
    """Return which members to record before others are worked out: two of each alignment, far apart.

    Of each number of sequences there is one, since what rounds up all tokens of a batch is of no form.
    """
    chosen: list[Sizes] = []
    for of_class in sorted({alignment(sizes[1]) for sizes in members}):
        alike = [sizes for sizes in members if alignment(sizes[1]) == of_class]
        chosen += [
            min(alike, key=lambda sizes: (sizes[1], -sizes[0], -sizes[2])),
            max(alike, key=lambda sizes: (sizes[1] % LENGTH_GRAIN, sizes[2], sizes[0], sizes[1])),
        ]
    for batch in sorted({sizes[2] for sizes in members}):
        chosen.append(max((sizes for sizes in members if sizes[2] == batch), key=_tells_tokens))
    return list(dict.fromkeys(chosen))


def _tells_tokens(sizes: Sizes) -> tuple[bool, Sizes]:
    """Return whether a batch's tokens rounded up are not its rounded sequences, then the larger sizes."""
    _, length, batch = sizes
    rounded = round_up(length * batch, LENGTH_GRAIN)
    return rounded != batch * round_up(length, LENGTH_GRAIN), sizes


class Forms:
    """The forms that each number of a family may have."""

    def __init__(self, family: Regular) -> None:
        self._family = family
        self._possible: NDArray[np.bool_] = np.ones((len(FORMS), 1), dtype=bool)
        self._recorded: list[Sizes] = []

    def learn(self, sizes: Sizes, numbers: Ints) -> bool:
        """Strike out the forms that a recorded point does not have; say whether each number has one left."""
        found = self._found(sizes)
        if any(worked_out is None for worked_out in found):
            return False
        self._recorded.append(sizes)
        right = [each[1] & (each[0] == numbers) for each in found if each is not None]
        self._possible = self._possible & np.stack(right)
        return bool(self._possible.any(axis=0).all())

    def numbers(self, sizes: Sizes) -> Ints | None:
        """Return the numbers at sizes; None where the forms do not agree, or are not known."""
        seen = {alignment(recorded[1]) for recorded in self._recorded}
        if len(self._recorded) < LEAST_RECORDED or alignment(sizes[1]) not in seen:
            return None
        if sizes[2] not in {recorded[2] for recorded in self._recorded}:
            return None
        result: Ints | None = None
        known = np.zeros(self._possible.shape[1], dtype=bool)
        for possible, worked_out in zip(self._possible, self._found(sizes), strict=True):
            if worked_out is None:
                return None
            whole = worked_out[0]
            result = whole.copy() if result is None else result
            clash = possible & (~worked_out[1] | (known & (result != whole)))
            if clash.any():
                return None
            result = np.where(possible & ~known, whole, result)
            known |= possible
        return result if known.all() else None

    def _found(self, sizes: Sizes) -> list[WorkedOut | None]:
        """Return the numbers for each form; forms that make one of the lengths share theirs."""
        rank, length, batch = sizes
        made: dict[tuple[int, int], WorkedOut | None] = {}
        lengths = [(round_up(length, first), round_up(length, second)) for first, second in FORMS]
        for one, other in lengths:
            if (one, other) not in made:
                made[one, other] = self._family.numbers_at((rank, one, batch), other)
        return [made[pair] for pair in lengths]
