"""Make something for many cards, once for all that choose the same kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from qbench.memory.kernels.choices import Card, Decisions, heard

Made = TypeVar("Made")


class ByCard(Generic[Made]):
    """What `make` returns for a card; made once for cards that would answer each question of it alike.

    `make` has to ask its card all that the result depends on while it runs (`choices.chosen_by_card`).
    """

    def __init__(self, make: Callable[[Card], Made]) -> None:
        self._make = make
        self._made: dict[Card, tuple[Decisions, Made]] = {}

    def __call__(self, card: Card) -> Made:
        """Return what was made for this card or for one alike; raises what `make` raises."""
        for known, (decisions, made) in self._made.items():
            if known == card or decisions.same_on(known, card):
                return made
        with heard() as decisions:
            made = self._make(card)
        self._made[card] = decisions, made
        return made
