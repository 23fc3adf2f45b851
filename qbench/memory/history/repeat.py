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
frees that of the copy before or after it (`_freed`). The history around the copies refers to the last copy
where it referred to the block from above, and to the template where it did from below.

Within forward and backward, layers run one after the other, so a block is what happened while its layers
ran. Elsewhere (loading, optimizer, the release of old outputs) loops go over parameters or layers, so a
block is a run of events about the storages of its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qbench.memory.history.layers import LayerRun, Layers, RepeatedLayers, runs_of
from qbench.memory.history.ledger import BLOCK_BYTES, Allocation
from qbench.memory.history.located_ledger import SitedLedger
from qbench.units import round_up


class IrregularError(Exception):
    """The history of the block's layers is not that of the next block's."""


@dataclass(slots=True)
class StretchedHistory:
    """A history as a ledger of the deep model would have it."""

    allocations: list[Allocation] = field(default_factory=list)
    events: list[tuple[int, int]] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)


def stretched(ledger: SitedLedger, block: RepeatedLayers) -> StretchedHistory:
    """Return the history with the block's layers repeated. Raises IrregularError where they are not alike."""
    layers = Layers(ledger, block)
    if block.copies == 0:
        return StretchedHistory(ledger.allocations, ledger.events, ledger.marks)
    return _Writer(ledger, block, layers).written()


class _Writer:
    """Writes the stretched history, event by event."""

    def __init__(self, ledger: SitedLedger, block: RepeatedLayers, layers: Layers) -> None:
        self._ledger = ledger
        self._block = block
        self._layers = layers
        self._out = StretchedHistory()
        self._new: dict[int, int] = {}
        self._copied: list[dict[int, int]] = [self._new] + [{} for _ in range(block.copies)]

    def written(self) -> StretchedHistory:
        marks = [*self._ledger.marks, (len(self._ledger.events), "")]
        start = 0
        for end, phase in marks:
            self._write_visit(start, end)
            if phase:
                self._out.marks.append((len(self._out.events), phase))
            start = end
        return self._out

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
        copies = range(1, self._block.copies + 1)
        if ascending:
            self._write_block(template, 0)
            for copy in copies:
                self._write_block(template, copy)
            self._write_all(following)
        else:
            self._write_all(following)
            for copy in reversed(copies):
                self._write_block(template, copy)
            self._write_block(template, 0)

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
                self._new[handle] = self._allocated(
                    handle, None if layer is None else self._block.moved(layer)
                )
                self._out.events.append((self._new[handle], self._size_of(self._new[handle])))
            elif layer in self._block and beyond:
                self._free(last[handle])
            elif layer in self._block and run.layer is None:
                raise IrregularError(f"event {event} frees a storage of layer {layer} alone")
            else:
                self._free(self._new[handle])

    def _write_block(self, template: list[LayerRun], copy: int) -> None:
        mine = self._copied[copy]
        for run in template:
            for event in range(run.start, run.end):
                handle, size = self._layers.events[event]
                layer = self._layers.of_handle[handle]
                if size > 0:
                    assert layer is not None
                    mine[handle] = self._allocated(handle, layer + copy * self._block.period)
                    self._out.events.append((mine[handle], size))
                else:
                    self._free(self._freed(handle, layer, copy))

    def _freed(self, handle: int, layer: int | None, copy: int) -> int:
        """Return the new handle that a copy of the block frees where the block itself frees `handle`."""
        block = self._block
        if layer is None:
            raise IrregularError("a layer of the block frees a storage of none")
        if layer in block:
            return self._copied[copy][handle]
        if layer < block.first:
            return self._new[handle] if copy == 0 else self._copied[copy - 1][self._alike(handle, 1)]
        if copy == block.copies:
            return self._new[handle]
        return self._copied[copy + 1][self._alike(handle, -1)]

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
        self._out.events.append((new, -self._size_of(new)))

    def _size_of(self, new: int) -> int:
        return round_up(self._out.allocations[new].num_bytes, BLOCK_BYTES)

    def _allocated(self, handle: int, layer: int | None) -> int:
        made = self._ledger.allocations[handle]
        path = made.module if layer is None else self._layers.renamed(made.module, layer)
        num_bytes = made.num_bytes + self._grown(handle)
        self._out.allocations.append(
            Allocation(num_bytes, made.phase, made.op, path, made.category, made.in_forward, made.stream)
        )
        return len(self._out.allocations) - 1

    def _grown(self, handle: int) -> int:
        """Return the bytes that the copies add to a storage whose size is a sum over layers."""
        parts = self._ledger.parts.get(handle)
        if parts is None:
            return 0
        numbers = ((self._part_layer(part), share) for part, share in parts.items())
        return round(self._block.copies * sum(share for number, share in numbers if number in self._block))

    def _part_layer(self, part: int | str) -> int | None:
        return self._layers.number(part) if isinstance(part, str) else self._layers.of_handle[part]
