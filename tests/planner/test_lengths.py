"""Which lengths a number follows, by numbers whose formula is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qbench.planner.families import Sizes
from qbench.planner.lengths import Forms, WorkedOut, alignment, around, to_record
from qbench.units import round_up

RECORDED: list[Sizes] = [(8, 300, 1), (16, 1000, 2)]


class Known:
    """A family of three numbers: tokens, the scores of a sequence, and the rank."""

    def numbers_at(self, sizes: Sizes, other_length: int) -> WorkedOut:
        rank, length, batch = sizes
        return np.array([batch * length, length * other_length, rank]), np.ones(3, dtype=bool)


def forms_of(number: Callable[[Sizes], list[int]]) -> Forms | None:
    forms = Forms(Known())
    told = [forms.learn(sizes, np.array(number(sizes))) for sizes in RECORDED]
    return forms if all(told) else None


def test_lengths_as_they_are() -> None:
    forms = forms_of(lambda sizes: [sizes[2] * sizes[1], sizes[1] ** 2, sizes[0]])
    assert forms is not None
    found = forms.numbers((24, 500, 2))
    assert found is not None
    assert found.tolist() == [1000, 250_000, 24]


@pytest.mark.parametrize("grain", [8, 16, 32, 64, 128])
def test_lengths_rounded_up(grain: int) -> None:
    def number(sizes: Sizes) -> list[int]:
        rounded = round_up(sizes[1], grain)
        return [sizes[2] * rounded, sizes[1] * rounded, sizes[0]]

    forms = forms_of(number)
    assert forms is not None
    for length in (500, 340, 712, 1001):
        found = forms.numbers((24, length, 2))
        # Where what was recorded leaves two grains that differ here, it is not guessed.
        assert found is None or found.tolist() == number((24, length, 2))


def test_what_was_not_seen_is_not_guessed() -> None:
    # 300 and 1000 are rounded up to 384 and 1024 by 128, and to 320 and 1024 by 64.
    forms = forms_of(lambda sizes: [sizes[2] * round_up(sizes[1], 128), sizes[1] ** 2, sizes[0]])
    assert forms is not None
    assert forms.numbers((24, 500, 3)) is None  # No batch of three was recorded,
    assert forms.numbers((24, 333, 2)) is None  # and no odd length.
    found = forms.numbers((24, 580, 2))
    assert found is not None
    assert found.tolist() == [1280, 336_400, 24]


def test_numbers_of_no_form_are_refused() -> None:
    assert forms_of(lambda sizes: [round_up(sizes[2] * sizes[1], 96), sizes[1] ** 2, sizes[0]]) is None


def test_neighbours_and_alignment() -> None:
    assert (around(300), around(256), around(100)) == ((256, 384), (256, 256), (0, 128))
    assert [alignment(length) for length in (300, 1000, 333, 1024)] == [4, 8, 1, 128]


def test_each_alignment_and_batch_is_recorded() -> None:
    members = [(rank, length, batch) for rank in (8, 16) for length in (300, 500, 1000) for batch in (1, 2)]
    chosen = to_record(members)
    assert {alignment(length) for _, length, _ in chosen} == {4, 8}
    assert {batch for _, _, batch in chosen} == {1, 2}
    assert len(chosen) <= 6
