"""Which few sizes tell all of a family of points, and how a number of another size follows from theirs.

A number of a plan is taken to be a polynomial of rank, sequence length and batch size with the terms below.
The samples are chosen so that one that is not gives itself away: a function that jumps or bends once, at any
value between two sampled ones, does not fit them, unless it is such a polynomial on all of the family.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qbench.memory.history.events import Ints
from qbench.planner.families import Sizes

_TERMS: tuple[Sizes, ...] = (
    (0, 0, 0),
    (0, 1, 0),
    (0, 1, 1),
    (0, 0, 1),
    (0, 2, 0),
    (0, 2, 1),
    (1, 0, 0),
    (1, 1, 1),
)
"""Exponents: weights; positions; activations; one value for a sequence; masks of one sequence or each;
adapters; what flows between the two halves of an adapter."""

MOST_SAMPLED = (3, 5, 4)
"""Sampled values of each size at most. Two more than the highest power: one to see a bend on either side."""

LARGEST = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSizes:
    """The sizes to record, and which terms they tell."""

    sizes: tuple[Sizes, ...]
    terms: tuple[Sizes, ...]
    num_basis: int
    """The first so many determine every polynomial; the others check it."""

    @property
    def checks(self) -> tuple[Sizes, ...]:
        """The samples beyond the basis."""
        return self.sizes[self.num_basis :]

    def values(self, axis: int) -> set[int]:
        """Return the sampled values of a size."""
        return {sizes[axis] for sizes in self.sizes}

    def weights(self, sizes: Sizes, other_length: int) -> tuple[tuple[int, ...], int]:
        """Return (factors, divisor): a number at `sizes` is sum(factor * basis sample's number) / divisor.

        A square of the length is its product with the other length.
        """
        inverse = _inverse(self.sizes[: self.num_basis], self.terms)
        wanted = [
            _power(sizes, term) if term[1] < 2 else _power(sizes, (term[0], 1, term[2])) * other_length
            for term in self.terms
        ]
        shares = [sum(value * share for value, share in zip(wanted, row, strict=True)) for row in inverse]
        divisor = math.lcm(*(Fraction(share).denominator for share in shares))
        return tuple(int(share * divisor) for share in shares), divisor


def choose_samples(family: Iterable[Sizes]) -> SampledSizes:
    """Return the samples of a family of sizes; of each batch size, between its smallest and largest."""
    return _choose(frozenset(family))


@functools.cache
def _choose(family: frozenset[Sizes]) -> SampledSizes:
    grid = _grid(family)
    spread = [sorted(set(values)) for values in zip(*grid, strict=True)]
    # The rank of full fine-tuning is 0 throughout.
    scaled = np.array(grid) / np.maximum(np.max(grid, axis=0), 1)
    terms = _independent(scaled, spread)
    systems = [_columns(scaled, terms), *_broken(scaled, terms)]
    chosen = _telling(systems)
    # The basis comes first: sizes that raise the rank of the polynomials alone.
    basis: list[int] = []
    for index in chosen:
        if _rank(systems[0][[*basis, index]]) > len(basis):
            basis.append(index)
    ordered = basis + [index for index in chosen if index not in basis]
    return SampledSizes(sizes=tuple(grid[index] for index in ordered), terms=terms, num_basis=len(basis))


def _grid(family: frozenset[Sizes]) -> list[Sizes]:
    """Return the sizes to choose from; a family cut by its tokens has other lengths for each batch size."""
    ranks, batches = (_spread({sizes[axis] for sizes in family}, MOST_SAMPLED[axis]) for axis in (0, 2))
    lengths = {
        batch: _spread({sizes[1] for sizes in family if sizes[2] == batch}, MOST_SAMPLED[1])
        for batch in batches
    }
    return [(rank, length, batch) for rank in ranks for batch in batches for length in lengths[batch]]


def _spread(found: set[int], most: int) -> list[int]:
    """Return at most so many of the values in order, evenly, the ends among them."""
    values = sorted(found)
    if len(values) <= most:
        return values
    places = {round(place) for place in np.linspace(0, len(values) - 1, most)}
    return [values[place] for place in sorted(places)]


def _power(sizes: Sizes, term: Sizes) -> int:
    return math.prod(int(pow(size, power)) for size, power in zip(sizes, term, strict=True))


def _columns(scaled: np.ndarray, terms: Sequence[Sizes]) -> np.ndarray:
    return np.stack([np.prod(scaled**term, axis=1) for term in terms], axis=1)


def _independent(scaled: np.ndarray, spread: Sequence[Sequence[int]]) -> tuple[Sizes, ...]:
    """Return the terms that the values can tell apart; two lengths know no square."""
    kept: list[Sizes] = []
    for term in _TERMS:
        told = all(power < len(values) for power, values in zip(term, spread, strict=True) if power > 1)
        if told and _rank(_columns(scaled, [*kept, term])) > len(kept):
            kept.append(term)
    return tuple(kept)


def _broken(scaled: np.ndarray, terms: Sequence[Sizes]) -> list[np.ndarray]:
    """Return the polynomials beside a jump and a bend, for each place between two values of the grid.

    Of the whole batch's tokens too, by which kernels are chosen, and of what an adapter makes of them.
    """
    systems = []
    tokens = scaled[:, 1] * scaled[:, 2]
    for axis in (*scaled.T, tokens, scaled[:, 0] * tokens):
        told = np.round(axis, 12)  # Products of the same sizes may differ in their last digits.
        for start in np.unique(told)[1:]:
            after = (told >= start).astype(float)
            systems.append(np.column_stack([_columns(scaled, terms), after, after * axis]))
    return systems


def _telling(systems: Sequence[np.ndarray]) -> list[int]:
    """Return rows that tell as much as all of them do, in each system; greedily, so not the very fewest."""
    alone, broken = systems[0], np.stack(systems[1:]) if systems[1:] else None

    def told(rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the rank of all systems together, for each of several choices of rows."""
        index = np.array(rows)
        ranks = _ranks(alone[index])
        return ranks if broken is None else ranks + _ranks(broken[:, index]).sum(axis=0)

    everything = range(len(alone))
    wanted = told([everything])[0]
    chosen: list[int] = []
    reached = 0
    while reached < wanted:
        left = [row for row in everything if row not in chosen]
        gains = told([[*chosen, row] for row in left])
        best = int(np.argmax(gains))
        chosen.append(left[best])
        reached = gains[best]
    return chosen


def _ranks(matrices: np.ndarray) -> np.ndarray:
    ranks: np.ndarray = np.linalg.matrix_rank(matrices, tol=1e-9)
    return ranks


def _rank(matrix: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(matrix, tol=1e-9))


@functools.cache
def _inverse(basis: tuple[Sizes, ...], terms: tuple[Sizes, ...]) -> list[list[Fraction]]:
    """Return, for each sample of a basis, its share of a number by the terms of the sizes."""
    columns = [[_power(sample, term) for sample in basis] for term in terms]
    units = [[int(place == other) for other in range(len(terms))] for place in range(len(terms))]
    solved = [_solve(columns, unit) for unit in units]
    return [list(shares) for shares in zip(*solved, strict=True)]


def _solve(columns: Sequence[Sequence[int]], wanted: Sequence[int]) -> list[Fraction]:
    """Return the exact solution of a regular system, by elimination."""
    rows = [
        [Fraction(value) for value in (*row, result)] for row, result in zip(columns, wanted, strict=True)
    ]
    for place in range(len(rows)):
        pivot = next(index for index in range(place, len(rows)) if rows[index][place])
        rows[place], rows[pivot] = rows[pivot], rows[place]
        head = [value / rows[place][place] for value in rows[place]]
        rows = [
            head if index == place else [value - row[place] * by for value, by in zip(row, head, strict=True)]
            for index, row in enumerate(rows)
        ]
    return [row[-1] for row in rows]


def combined(
    numbers: Sequence[Ints], factors: Sequence[int], divisor: int
) -> tuple[Ints, NDArray[np.bool_]] | None:
    """Return the weighted sums of the samples' numbers and which are whole; None where they are too large."""
    bound = sum(
        abs(factor) * int(of_one.max(initial=0)) for factor, of_one in zip(factors, numbers, strict=True)
    )
    if bound > LARGEST:
        return None
    total = sum(factor * of_one for factor, of_one in zip(factors, numbers, strict=True) if factor)
    whole, rest = np.divmod(total, divisor)
    return whole, rest == 0
