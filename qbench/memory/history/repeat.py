"""Stretch the history of a shallow model to that of a deep one whose further layers repeat those recorded.

A model's layers run the same operators, so the history of a deep model is that of a shallow one with one
part repeated. That part is a *block*: one layer, or as many as a pattern of layer kinds spans. Take a model
recorded with four layers, a block of one layer (number 1) and two copies, which gives a model of six:

    recorded   forward  0 1 2 3            backward  3 2 1 0
    stretched  forward  0 1 1' 1" 2 3      backward  3 2 1" 1' 1 0      then 2, 3 are renamed 4, 5

The copies are valid only if the block (the *template*) and the block after it (the *following* one) record
the same events: equal sizes, operators and modules, and storages that belong to the same place relative to
their layer. `_compare` proves that, event by event, each time a block is repeated; where it fails, nothing
is stretched (IrregularError) and the caller records the deep model itself.

An event refers to a storage by its handle. A copy needs handles of its own, so the writer keeps one map a
copy from recorded to new handles (`_copied`, of which entry 0 is the template itself). An event of a layer
may also free what its neighbour allocated, such as the hidden states between two layers: the copy then
frees that of the copy before or after it (`_Step.blocks`). The history around the copies refers to the last
copy where it referred to the block from above, and to the template where it did from below.

Within forward and backward, layers run one after the other, so a block is what happened while its layers
ran. Elsewhere (loading, optimizer, the release of old outputs) loops go over parameters or layers, so a
block is a run of events about the storages of its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qbench.memory.history.events import Made, Outline, SizedHistory, bytes_asked, outline_of
from qbench.memory.history.layers import LayerRun, Layers, RepeatedLayers, runs_of
from qbench.memory.history.ledger import Allocation
from qbench.memory.history.located_ledger import SitedLedger


class IrregularError(Exception):
    """The history of the block's layers is not that of the next block's."""


class _Step(NamedTuple):
    """One event of the block, as each copy repeats it."""

    handle: int
    """The recorded storage."""
    made: Allocation | None
    """What is allocated; None on a free."""
    num_bytes: int = 0
    """The bytes to allocate."""
    layer: int = 0
    """The recorded layer of what is allocated."""
    blocks: int = 0
    """How many blocks further what is freed was allocated."""
    alike: int = 0
    """The storage of the block that is to it what the one to be freed is to that other block."""


def stretched(ledger: SitedLedger, block: RepeatedLayers) -> SizedHistory:
    """Return the history with the block's layers repeated, as a ledger of the deep model would have it.

    Raises IrregularError where they are not alike.
    """
    layers = Layers(ledger, block)
    if block.copies == 0:
        return SizedHistory(outline_of(ledger), bytes_asked(ledger))
    return _Writer(ledger, block, layers).written()


class _Writer:
    """Writes the stretched history, event by event."""

    def __init__(self, ledger: SitedLedger, block: RepeatedLayers, layers: Layers) -> None:
        self._ledger = ledger
        self._block = block
        self._layers = layers
        self._handles: list[int] = []
        self._frees: list[bool] = []
        self._made: list[Made] = []
        self._bytes: list[int] = []
        self._marks: list[tuple[int, str]] = []
        self._new: dict[int, int] = {}
        self._copied: list[dict[int, int]] = [self._new] + [{} for _ in range(block.copies)]

    def written(self) -> SizedHistory:
        marks = [*self._ledger.marks, (len(self._ledger.events), "")]
        start = 0
        for end, phase in marks:
            self._write_visit(start, end)
            if phase:
                self._marks.append((len(self._handles), phase))
            start = end
        outline = Outline(
            handles=np.array(self._handles, dtype=np.int64),
            is_free=np.array(self._frees, dtype=bool),
            made=self._made,
            marks=self._marks,
        )
        return SizedHistory(outline, np.array(self._bytes, dtype=np.int64))

    def _write_visit(self, start: int, end: int) -> None:
        runs = list(self._refined(runs_of(self._layers.of_event, start, end)))
        index = 0
        while index < len(runs):
            group = self._group(runs, index)
            if group is None:
                self._write_kept(runs[index])
                index += 1
                continue
            self._write_group(*group)
            index += 2 * self._block.period

    def _refined(self, runs: Iterator[LayerRun]) -> Iterator[LayerRun]:
        """Split a run in which storages of all the block's layers and the next ones' come one by one."""
        block = self._block
        both = set(range(block.first, block.first + 2 * block.period))
        for run in runs:
            about = [self._about(event) for event in range(run.start, run.end)]
            if run.layer in both or not both <= set(about):
                yield run
            else:
                yield from runs_of(about, 0, len(about), run.start)

    def _about(self, event: int) -> int | None:
        return self._layers.of_handle[self._layers.events[event][0]]

    def _group(self, runs: list[LayerRun], index: int) -> tuple[list[LayerRun], list[LayerRun], bool] | None:
        """Return the runs of the block, those of the next one, and whether layers ascend; None elsewhere."""
        block, period = self._block, self._block.period
        found = runs[index : index + 2 * period]
        numbers = [run.layer for run in found]
        wanted = list(range(block.first, block.first + 2 * period))
        if numbers == wanted:
            return found[:period], found[period:], True
        if numbers == wanted[::-1]:
            return found[period:], found[:period], False
        return None

    def _write_group(self, template: list[LayerRun], following: list[LayerRun], ascending: bool) -> None:
        for mine, others in zip(template, following, strict=True):
            self._compare(mine, others)
        steps = [self._step(event) for run in template for event in range(run.start, run.end)]
        copies = range(self._block.copies + 1)
        if not ascending:
            self._write_all(following)
        for copy in copies if ascending else reversed(copies):
            self._write_copy(steps, copy)
        if ascending:
            self._write_all(following)

    def _compare(self, mine: LayerRun, others: LayerRun) -> None:
        if mine.end - mine.start != others.end - others.start:
            raise IrregularError(f"layers {mine.layer} and {others.layer} have other numbers of events")
        assert mine.layer is not None
        assert others.layer is not None
        for one, other in zip(range(mine.start, mine.end), range(others.start, others.end), strict=True):
            if self._identity(one, mine.layer) != self._identity(other, others.layer):
                raise IrregularError(f"event {one} of layer {mine.layer} is not like {other}")

    def _identity(self, event: int, layer: int) -> tuple[object, ...]:
        """Return what must be the same for two layers: size, storage, and how it came about."""
        handle, size = self._layers.events[event]
        name = self._layers.names[handle]
        if name is None:
            return (size, handle)
        visit, about, kind, number = name
        return (size, visit, about - layer, kind, number)

    def _write_all(self, runs: Sequence[LayerRun]) -> None:
        for run in runs:
            self._write_kept(run)

    def _write_kept(self, run: LayerRun) -> None:
        """Write events of layers that stand once, whatever they are about."""
        last = self._copied[self._block.copies]
        beyond = run.layer is not None and run.layer >= self._block.first + self._block.period
        for event in range(run.start, run.end):
            handle, size = self._layers.events[event]
            layer = self._layers.of_handle[handle]
            if size > 0:
                made, moved = (
                    self._ledger.allocations[handle],
                    None if layer is None else self._block.moved(layer),
                )
                self._new[handle] = self._allocated(made, made.num_bytes + self._grown(handle), moved)
            elif layer in self._block and beyond:
                self._free(last[handle])
            elif layer in self._block and run.layer is None:
                raise IrregularError(f"event {event} frees a storage of layer {layer} alone")
            else:
                self._free(self._new[handle])

    def _step(self, event: int) -> _Step:
        handle, size = self._layers.events[event]
        layer = self._layers.of_handle[handle]
        if layer is None:
            raise IrregularError("a layer of the block is about a storage of none")
        if size > 0:
            made = self._ledger.allocations[handle]
            return _Step(handle, made, made.num_bytes + self._grown(handle), layer)
        if layer in self._block:
            return _Step(handle, None)
        blocks = -1 if layer < self._block.first else 1
        return _Step(handle, None, blocks=blocks, alike=self._alike(handle, -blocks))

    def _write_copy(self, steps: Sequence[_Step], copy: int) -> None:
        """Write what a copy of the block does; it frees what the copy before or after it allocated, too.

        The first and the last copy have no such neighbour, and free what was recorded.
        """
        mine, last, further = self._copied[copy], self._block.copies, copy * self._block.period
        for handle, made, num_bytes, layer, blocks, alike in steps:
            if made is not None:
                mine[handle] = self._allocated(made, num_bytes, layer + further)
            elif not blocks:
                self._free(mine[handle])
            elif 0 <= copy + blocks <= last:
                self._free(self._copied[copy + blocks][alike])
            else:
                self._free(self._new[handle])

    def _alike(self, handle: int, blocks: int) -> int:
        """Return the storage that is to another block what this one is to its own."""
        name = self._layers.names[handle]
        assert name is not None
        visit, layer, kind, number = name
        found = self._layers.handles.get((visit, layer + blocks * self._block.period, kind, number))
        if found is None or self._layers.of_handle[found] not in self._block:
            raise IrregularError(f"storage {handle} of layer {layer} has no like in the block")
        return found

    def _free(self, new: int) -> None:
        self._handles.append(new)
        self._frees.append(True)

    def _allocated(self, made: Allocation, num_bytes: int, layer: int | None) -> int:
        new = len(self._made)
        path = made.module if layer is None else self._layers.renamed(made.module, layer)
        self._made.append((made.phase, made.op, path, made.category, made.in_forward, made.stream))
        self._bytes.append(num_bytes)
        self._handles.append(new)
        self._frees.append(False)
        return new

    def _grown(self, handle: int) -> int:
        """Return the bytes that the copies add to a storage whose size is a sum over layers."""
        parts = self._ledger.parts.get(handle)
        if parts is None:
            return 0
        numbers = ((self._part_layer(part), share) for part, share in parts.items())
        return round(self._block.copies * sum(share for number, share in numbers if number in self._block))

    def _part_layer(self, part: int | str) -> int | None:
        return self._layers.number(part) if isinstance(part, str) else self._layers.of_handle[part]
