"""Which sizes are sampled, and that what is no polynomial of them gives itself away."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from qbench.planner.families import Sizes
from qbench.planner.sampling import SampledSizes, choose_samples, combined

RANKS = (4, 8, 16, 32, 64)
LENGTHS = tuple(256 * step for step in range(1, 11))
GRID: list[Sizes] = list(itertools.product(RANKS, LENGTHS, (1,)))


def value(samples: SampledSizes, number: Callable[[Sizes], int], sizes: Sizes) -> int | None:
    """Return what the samples tell of a number at these sizes, None where that is no whole one."""
    basis = [np.array([number(sample)]) for sample in samples.sizes[: samples.num_basis]]
    found = combined(basis, *weights(samples, sizes))
    return None if found is None or not found[1].all() else int(found[0][0])


@functools.cache
def weights(samples: SampledSizes, sizes: Sizes) -> tuple[tuple[int, ...], int]:
    return samples.weights(sizes, sizes[1])


def fits(samples: SampledSizes, number: Callable[[Sizes], int]) -> bool:
    """Say whether the samples beyond the basis are what the basis says."""
    return all(value(samples, number, sizes) == number(sizes) for sizes in samples.sizes[samples.num_basis :])


def polynomial(sizes: Sizes) -> int:
    rank, length, batch = sizes
    return 7 + 4096 * batch * length + 2 * batch * length**2 + 16 * rank + 3 * rank * length * batch


def test_a_grid_of_ranks_and_lengths_takes_seven_samples() -> None:
    # Five terms (1, s, s^2, r, r s); two more samples tell a jump and a bend from all of them.
    samples = choose_samples(GRID)
    assert (len(samples.sizes), samples.num_basis) == (7, 5)
    assert samples.values(1) == {256, 768, 1280, 2048, 2560}


@pytest.mark.parametrize("batches", [(1,), (1, 2, 4, 8)])
def test_polynomials_are_exact_everywhere(batches: tuple[int, ...]) -> None:
    grid: list[Sizes] = list(itertools.product(RANKS, LENGTHS, batches))
    samples = choose_samples(grid)
    assert fits(samples, polynomial)
    assert all(value(samples, polynomial, sizes) == polynomial(sizes) for sizes in grid)


@pytest.mark.parametrize("axis", [0, 1], ids=["rank", "length"])
def test_no_jump_and_no_bend_goes_unseen(axis: int) -> None:
    """Wherever a threshold lies: what fits the samples is right on the whole grid."""
    samples = choose_samples(GRID)
    largest = max(sizes[axis] for sizes in GRID)
    for threshold in range(1, largest, max(1, largest // 80)):
        changes: list[Callable[[Sizes], int]] = [
            lambda sizes, limit=threshold: polynomial(sizes) + 512 * (sizes[axis] > limit),  # type: ignore[misc]
            lambda sizes, limit=threshold: polynomial(sizes) + 4 * max(0, sizes[axis] - limit),  # type: ignore[misc]
            lambda sizes, limit=threshold: 4096 * min(sizes[axis], limit),  # type: ignore[misc]
        ]
        for number in changes:
            if fits(samples, number):
                assert all(value(samples, number, sizes) == number(sizes) for sizes in GRID), threshold


UNEVEN: list[list[Sizes]] = [
    list(itertools.product((8, 32, 64), (512, 1024, 2048, 4096, 8192), (1, 4))),
    list(itertools.product((24, 64, 96, 128), (4096, 4352, 4608, 7424, 7936), (4, 16))),
]


@pytest.mark.parametrize("grid", [GRID, *UNEVEN], ids=["one batch", "doubling", "uneven"])
def test_the_largest_sizes_are_sampled(grid: list[Sizes]) -> None:
    """Nothing is worked out where more is computed than in any sample."""
    assert max(grid) in choose_samples(grid).sizes


@pytest.mark.parametrize("grid", UNEVEN, ids=["doubling", "uneven"])
def test_no_change_of_what_adapters_make_of_the_tokens_goes_unseen(grid: list[Sizes]) -> None:
    samples = choose_samples(grid)
    made = {sizes: math.prod(sizes) for sizes in grid}
    for threshold in sorted(set(made.values())):
        changes: list[Callable[[Sizes], int]] = [
            lambda sizes, limit=threshold: polynomial(sizes) + 512 * (made[sizes] >= limit),  # type: ignore[misc]
            lambda sizes, limit=threshold: polynomial(sizes) + 4 * max(0, made[sizes] - limit),  # type: ignore[misc]
        ]
        for number in changes:
            if fits(samples, number):
                assert all(value(samples, number, sizes) == number(sizes) for sizes in grid), threshold


def test_rounding_is_no_polynomial() -> None:
    def padded(sizes: Sizes) -> int:
        return 4 * -(-sizes[1] // 1000) * 1000

    assert not fits(choose_samples(GRID), padded)


def test_two_lengths_know_no_square() -> None:
    samples = choose_samples([(rank, length, 1) for rank in RANKS for length in (512, 1024)])
    assert (0, 2, 0) not in samples.terms
    # Anything that depends on the length alone is right at the two of them.
    assert value(samples, lambda sizes: sizes[1] ** 3, (32, 1024, 1)) == 1024**3


def test_numbers_too_large_for_64_bits_are_not_combined() -> None:
    assert combined([np.array([1 << 60])], (8,), 1) is None


def test_sums_that_are_not_whole_are_told() -> None:
    found = combined([np.array([3, 3]), np.array([4, 5])], (1, 1), 2)
    assert found is not None
    # (3 + 4) / 2 is not whole, (3 + 5) / 2 = 4 is.
    assert (found[0][1], found[1].tolist()) == (4, [False, True])
