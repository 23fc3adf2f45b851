"""A history in columns: what happened, apart from how many bytes it was about.

The histories of points that differ in sizes alone have one outline, so that it is worked out once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.memory.history.ledger import BLOCK_BYTES, Allocation, History, emptied_at
from qbench.records.metrics import BREAKDOWN

Ints = NDArray[np.int64]

Made = tuple[str, str, str, str, bool, int]
"""Phase, operator, module and category of an allocation, whether a forward pass made it, and its stream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outline:
    """The events of a history in order, and what each allocation is."""

    handles: Ints
    """The allocation that each event is about."""
    is_free: NDArray[np.bool_]
    made: list[Made]
    """By the allocation's handle."""
    marks: list[tuple[int, str]]

    def same_as(self, other: Outline) -> bool:
        """Say whether the same things happened, sizes left aside."""
        return (
            self.marks == other.marks
            and np.array_equal(self.handles, other.handles)
            and np.array_equal(self.is_free, other.is_free)
            and self.made == other.made
        )

    @property
    def emptied(self) -> frozenset[int]:
        """The numbers of the events before which the program empties the allocator's cache."""
        return emptied_at(self.marks)

    @cached_property
    def phases(self) -> tuple[list[str], Ints]:
        """The phases in which something was allocated, in order, and the number of each allocation's."""
        return numbered([made[0] for made in self.made])

    @cached_property
    def streams(self) -> list[int] | None:
        """The stream of each event; None where all is on one."""
        by_handle = np.array([made[5] for made in self.made], dtype=np.int64)
        found: list[int] | None = by_handle[self.handles].tolist() if by_handle.any() else None
        return found

    @cached_property
    def category_of(self) -> Ints:
        """The category of each allocation as its place in `BREAKDOWN`."""
        numbers = {name: number for number, name in enumerate(BREAKDOWN)}
        saved = self._saved_for_backward()
        return np.array([numbers[_category(made, saved[handle])] for handle, made in enumerate(self.made)])

    @cached_property
    def declared(self) -> tuple[list[str], Ints]:
        """The categories given when memory was allocated, and the number of each allocation's."""
        return numbered([made[3] for made in self.made])

    def alive_at(self, event: int) -> NDArray[np.bool_]:
        """Say of each allocation whether it is alive before an event."""
        begins, ends = self._lifetimes
        return (begins < event) & (ends >= event)

    @cached_property
    def _lifetimes(self) -> tuple[Ints, Ints]:
        count = len(self.handles)
        begins, ends = np.full((2, len(self.made)), count)
        events = np.arange(count)
        begins[self.handles[~self.is_free]] = events[~self.is_free]
        ends[self.handles[self.is_free]] = events[self.is_free]
        return begins, ends

    def _saved_for_backward(self) -> list[bool]:
        """Say what a forward pass made and what was alive when its backward began."""
        saved = np.zeros(len(self.made), dtype=bool)
        for event, phase in self.marks:
            if phase == "backward":
                saved |= self.alive_at(event)
        saved &= np.array([made[4] for made in self.made], dtype=bool)
        kept: list[bool] = saved.tolist()
        return kept


def outline_of(history: History) -> Outline:
    """Return the outline of a history."""
    if isinstance(history, SizedHistory):
        return history.outline
    events = np.array(history.events, dtype=np.int64).reshape(-1, 2)
    made = [
        (each.phase, each.op, each.module, each.category, each.in_forward, each.stream)
        for each in history.allocations
    ]
    return Outline(handles=events[:, 0].copy(), is_free=events[:, 1] < 0, made=made, marks=history.marks)


def bytes_asked(history: History) -> Ints:
    """Return the bytes of each allocation as requested."""
    if isinstance(history, SizedHistory):
        return history.asked
    return np.array([allocation.num_bytes for allocation in history.allocations], dtype=np.int64)


def event_bytes(outline: Outline, asked: Ints) -> Ints:
    """Return the bytes of each event, rounded up to 512 B and negative on a free."""
    rounded = (asked + (BLOCK_BYTES - 1)) // BLOCK_BYTES * BLOCK_BYTES
    sizes = rounded[outline.handles]
    sizes[outline.is_free] *= -1
    return sizes


def declared_bytes(outline: Outline, asked: Ints) -> dict[str, int]:
    """Return the requested bytes by the category of each allocation, empty where none was given."""
    names, numbers = outline.declared
    totals = np.zeros(len(names), dtype=np.int64)
    np.add.at(totals, numbers, asked)
    return dict(zip(names, totals.tolist(), strict=True))


class SizedHistory:
    """An outline with sizes put in: a history as a ledger would have it, in full only where that is asked."""

    def __init__(self, outline: Outline, asked: Ints) -> None:
        self.outline = outline
        self.asked = asked
        self.marks = outline.marks

    @cached_property
    def events(self) -> list[tuple[int, int]]:
        """(handle, bytes), negative on a free."""
        sizes = event_bytes(self.outline, self.asked)
        return list(zip(self.outline.handles.tolist(), sizes.tolist(), strict=True))

    @cached_property
    def allocations(self) -> list[Allocation]:
        """What each handle is."""
        pairs = zip(self.asked.tolist(), self.outline.made, strict=True)
        return [Allocation(num_bytes, *made) for num_bytes, made in pairs]


def _category(made: Made, saved: bool) -> str:
    phase, _, _, category, in_forward, _ = made
    if category:
        return category
    # A recomputed tensor is an activation while its layer's backward runs.
    if saved or (in_forward and phase == "backward"):
        return "activations"
    return "temporaries"


def numbered(names: Sequence[Any]) -> tuple[list[Any], Ints]:
    """Return the different names in order of their first place, and the number of each name among them."""
    numbers: dict[Any, int] = {}
    found = [numbers.setdefault(name, len(numbers)) for name in names]
    return list(numbers), np.array(found, dtype=np.int64)
