"""Exact look-up of catalog rows by name or alias, and the nearest names on a miss."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Generic, TypeVar

from qbench.errors import nearest

Row = TypeVar("Row")


class NameIndex(Generic[Row]):
    """Rows by every name they have. Case is ignored; a part of a name never matches.

    Raises ValueError when one name belongs to two rows, which is a mistake in the data.
    """

    def __init__(self, rows_with_names: Iterable[tuple[Row, tuple[str, ...]]]) -> None:
        """Index each row under its names; the first one is the row's own, the others are aliases."""
        self._rows: dict[str, Row] = {}
        self._own_names: dict[str, str] = {}
        for row, names in rows_with_names:
            for name in names:
                if self._rows.setdefault(name.casefold(), row) is not row:
                    raise ValueError(f"catalog data: {name!r} names two rows")
                self._own_names[name] = names[0]

    def find(self, name: str) -> Row | None:
        """Return the row of that name or alias, or None."""
        return self._rows.get(name.casefold())

    def nearest(self, name: str, count: int = 3) -> tuple[str, ...]:
        """Return up to `count` rows' own names that look most like `name`, best first.

        Names with the same numbers come first: who asks for an RTX 4060 does not want a 4090.
        """
        # A row has several spellings, so ask for more of them than rows are wanted.
        spellings = [*self._same_numbers(name), *nearest(name, self._own_names, count=3 * count)]
        own_names = dict.fromkeys(self._own_names[spelling] for spelling in spellings)
        return tuple(own_names)[:count]

    def _same_numbers(self, name: str) -> list[str]:
        """Return the spellings that hold every number of `name` of two digits or more, most alike first."""
        numbers = _numbers(name)
        same = [spelling for spelling in self._own_names if numbers and numbers <= _numbers(spelling)]
        return sorted(same, key=lambda spelling: -_likeness(name, spelling))


def _numbers(name: str) -> set[str]:
    return set(re.findall(r"\d{2,}", name))


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.casefold(), other.casefold()).ratio()


def nearest_text(names: tuple[str, ...]) -> str:
    """Return the nearest names as a clause of an error message; empty if there are none."""
    return f"; nearest: {', '.join(names)}" if names else ""
