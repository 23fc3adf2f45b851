"""Which layer each event of a history is about, and which storages of two layers are each other's like.

Within forward and backward, layers run one after the other, and an event belongs to the layer that runs.
Elsewhere (loading, optimizer) loops go over parameters, and it belongs to the layer of its storage.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qbench.memory.history.located_ledger import PHASES_BY_LAYER, SitedLedger


@dataclass(frozen=True, slots=True)
class RepeatedLayers:
    """The layers to repeat: `period` of them from `first` on; as many must follow, and one more."""

    stack: str
    """Path of the list of layers, as it ends a module's path: `model.layers`."""
    first: int
    period: int
    copies: int
    """How many more times the block is to stand in the history."""

    def __contains__(self, layer: int | None) -> bool:
        return layer is not None and self.first <= layer < self.first + self.period

    def number(self, path: str) -> int | None:
        """Return the layer that a module's path or a parameter's name belongs to, None for no layer."""
        found = _number_in(self.stack).search(path)
        return int(found.group(1)) if found else None

    def times(self, path: str) -> int:
        """Return how often a recorded module or parameter stands in the deep model."""
        return 1 + self.copies if self.number(path) in self else 1

    def moved(self, layer: int) -> int:
        """Return the number of a recorded layer in the deep model."""
        return layer if layer < self.first + self.period else layer + self.copies * self.period


@functools.cache
def _number_in(stack: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|\.){re.escape(stack)}\.(\d+)(?=\.|$)")


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Events in a row about one layer; `by_layer` tells whether it ran or was only the storages'."""

    layer: int | None
    start: int
    end: int


StorageKind = tuple[int, str, str, str, bool]
"""Bytes, operator, module path (of the block's first layer), category, and whether a forward pass made it."""

Name = tuple[int, int, StorageKind, int]
"""A storage: the visit in which it was made, its layer, its kind, and its number among the layer's alike."""


class Layers:
    """The layer of each event and of each storage."""

    def __init__(self, ledger: SitedLedger, block: RepeatedLayers) -> None:
        self._ledger = ledger
        self.events = list(ledger.events)
        """The ledger's; where storages of many layers are freed in a row, in the order of their layers."""
        self._block = block
        self._numbers: dict[str, int | None] = {}
        self._paths: dict[tuple[str, int], str] = {}
        self.of_handle: list[int | None] = []
        self.of_event: list[int | None] = []
        """The layer that ran in a phase by layers; elsewhere that of the storage."""
        self.visit_of_event: list[int] = []
        self.names: list[Name | None] = []
        self.handles: dict[Name, int] = {}
        self._assign()

    def number(self, path: str) -> int | None:
        """Return the layer that a module path or a parameter's name belongs to."""
        if path not in self._numbers:
            self._numbers[path] = self._block.number(path)
        return self._numbers[path]

    def renamed(self, path: str, layer: int) -> str:
        """Return a module path with another layer's number."""
        if (path, layer) not in self._paths:
            found = _number_in(self._block.stack).search(path)
            self._paths[path, layer] = (
                path if found is None else f"{path[: found.start(1)]}{layer}{path[found.end(1) :]}"
            )
        return self._paths[path, layer]

    def kind(self, handle: int) -> StorageKind:
        """Return what a storage has in common with its likes in other layers."""
        made = self._ledger.allocations[handle]
        path = self.renamed(made.module, 0)
        return (made.num_bytes, made.op, path, made.category, made.in_forward)

    def _assign(self) -> None:
        starts = [event for event, _ in self._ledger.marks] + [len(self.events)]
        phases = ["build"] + [phase for _, phase in self._ledger.marks]
        event = 0
        for visit, end in enumerate(starts):
            by_layer = phases[visit] in PHASES_BY_LAYER
            self._assign_visit(visit, range(event, end), by_layer)
            self._sort_frees(range(event, end), by_layer)
            if not by_layer:
                self._smooth(range(event, end))
            event = end

    def _sort_frees(self, events: range, by_layer: bool) -> None:
        """Bring frees in a row, whose order tells nothing, into the order of the block's layers and the next.

        Old graphs and caches end so, roughly from layer to layer.
        """
        block = self._block
        both = set(range(block.first, block.first + 2 * block.period))
        # A loop's turn frees something of its own and of the turn before; that order does tell.
        all_around = both | {block.first - 1, block.first + 2 * block.period}
        for start, end in self._rows_of_frees(events):
            layers = {self.of_handle[handle] for handle, _ in self.events[start:end]}
            alone = {self.of_event[event] for event in range(start, end)} if by_layer else {None}
            if all_around <= layers and len(alone) == 1 and not alone & both:
                self.events[start:end] = sorted(self.events[start:end], key=self._layer_freed)
                if not by_layer:
                    self.of_event[start:end] = [
                        self.of_handle[handle] for handle, _ in self.events[start:end]
                    ]

    def _layer_freed(self, event: tuple[int, int]) -> tuple[int, Name | None, int]:
        name = self.names[event[0]]
        # What belongs to no layer comes first, in the order of its handles.
        return (-1, None, event[0]) if name is None else (name[1], name, 0)

    def _rows_of_frees(self, events: range) -> Iterator[tuple[int, int]]:
        for is_free, row in itertools.groupby(events, key=lambda event: self.events[event][1] < 0):
            if is_free:
                found = list(row)
                yield found[0], found[-1] + 1

    def _smooth(self, events: range) -> None:
        """Give to a loop's turn what it frees of the turn before, as a variable that is bound anew does."""
        found = list(runs_of(self.of_event, events.start, events.stop))
        for before, run, after in zip(found, found[1:], found[2:], strict=False):
            if run.layer is None or not before.layer == after.layer == run.layer + 1:
                continue
            if self._allocates(before) and not self._allocates(run):
                self.of_event[run.start : run.end] = [after.layer] * (run.end - run.start)

    def _allocates(self, run: LayerRun) -> bool:
        return any(size > 0 for _, size in self.events[run.start : run.end])

    def _assign_visit(self, visit: int, events: range, by_layer: bool) -> None:
        current: int | None = None
        counts: Counter[tuple[int, StorageKind]] = Counter()
        for event in events:
            handle, size = self.events[event]
            site = self.number(self._ledger.sites[event])
            if by_layer:
                current = current if site is None else site
            if size > 0:
                layer = current if by_layer else self._made_for(handle, site, current)
                self.of_handle.append(layer)
                name = None
                if layer is not None:
                    kind = self.kind(handle)
                    name = (visit, layer, kind, counts[layer, kind])
                    counts[layer, kind] += 1
                    self.handles[name] = handle
                self.names.append(name)
            if not by_layer:
                current = self.of_handle[handle]
            self.of_event.append(current)
            self.visit_of_event.append(visit)

    def _made_for(self, handle: int, site: int | None, before: int | None) -> int | None:
        """Return the layer of a storage made outside the layers' phases."""
        source = self._ledger.sources.get(handle)
        if site is None and source is not None:
            site = self.of_handle[source]
        # What tells nothing of itself belongs to what was made just before, as the parts of one state do.
        return site if site is not None or handle in self._ledger.parts else before


def runs_of(numbers: Sequence[int | None], start: int, end: int, offset: int = 0) -> Iterator[LayerRun]:
    """Yield the runs of equal numbers; `offset` is that of the events they stand for."""
    event = start + offset
    for layer, group in itertools.groupby(numbers[start:end]):
        length = sum(1 for _ in group)
        yield LayerRun(layer, event, event + length)
        event += length
