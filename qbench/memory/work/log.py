"""The costs of a recorded step, operator by operator, and what they are for all layers where few were run."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from qbench.memory.history.layers import RepeatedLayers
from qbench.memory.history.located_ledger import PHASES_BY_LAYER, SitedLedger
from qbench.memory.kernels.meta_cache import UnhashableError, call_key
from qbench.memory.work.fusion import Ran, Storages, fused
from qbench.memory.work.op_costs import (
    OpCost,
    changed,
    dequantizations,
    op_cost,
    product_of_4bit,
    tensor_bytes,
    tensors,
)

_GEMM_4BIT = "bitsandbytes::gemm_4bit"

_NO_WORK = frozenset(
    [
        torch.ops.profiler._record_function_enter_new.default,
        torch.ops.profiler._record_function_exit._RecordFunction,
        torch.ops.aten.lift_fresh.default,
    ]
)
"""What torch's optimizers tell profilers, and the marking of a constant."""


@dataclass(frozen=True, slots=True)
class Work:
    """Runs of one operator on tensors of one size, in one part of a step."""

    cost: OpCost
    phase: str
    is_recomputed: bool
    """Whether checkpointing runs it again in backward."""
    in_loss: bool
    """Whether it belongs to the output head and the loss."""


WorkTable = list[tuple[Work, float]]
"""The work of a step, and how often each is done."""


class _Entry(NamedTuple):
    cost: OpCost
    phase: str
    module: str
    is_recomputed: bool
    in_loss: bool
    handles: tuple[int, ...]
    """Storages that tell the layer where no module runs, in the optimizer's phase: inputs, then outputs."""
    on_host: bool
    """Whether it works on the host's tensors only, as on the optimizer's counters of steps."""
    times: int = 1
    """How many micro-batches the one that ran stands for."""
    reads: Storages = ()
    writes: Storages = ()
    """Storages, where compiled kernels are worked out."""


class CostLog:
    """What a ledger notes of each operator of one step; `compiled` turns it into torch.compile's kernels."""

    def __init__(self, compiled: bool = False) -> None:
        self._compiled = compiled
        self._entries: list[_Entry] = []
        self._known: dict[Hashable, tuple[OpCost, bool]] = {}
        self._times = 1

    def begin_repeated(self, times: int) -> None:
        """Count what is noted next so many times."""
        self._times = times

    @property
    def num_entries(self) -> int:
        """Operators noted so far."""
        return len(self._entries)

    def note(self, ledger: Any, func: Any, args: Any, kwargs: Any, out: Any, key: Hashable = None) -> None:
        """Take down one operator that ran under a ledger; calls of one key (`call_key`) cost the same."""
        if func in _NO_WORK:
            return
        place = self._place(ledger)
        if place[0] not in PHASES_BY_LAYER and args and isinstance(args[0], (list, tuple)):
            name = func._schema.name
            if name.startswith(("aten::_foreach_", "aten::_fused_")):
                self._note_each(ledger, place, func, args, kwargs, out)
                return
        self._append(ledger, place, func, args, kwargs, out, key)

    def note_opened(self, ledger: Any, start: int, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Take down an operator that the ledger put another function in place of.

        `start` is the number of entries before: what that function ran is there already, and only the
        kernels that it cannot show are added.
        """
        if func._schema.name != _GEMM_4BIT:
            self.note(ledger, func, args, kwargs, out)
            return
        inner = {entry.cost.kind for entry in self._entries[start:]}
        if "dequantize" in inner:
            return
        hidden = dequantizations(args, kwargs) if "matmul" in inner else [product_of_4bit(args, kwargs, out)]
        place = self._place(ledger)
        reads, writes = _storages(ledger, (args, tuple(kwargs.values()))), _storages(ledger, out)
        self._entries += [_Entry(cost, *place, (), False, self._times, reads, writes) for cost in hidden]

    def work(self, ledger: Any = None, block: RepeatedLayers | None = None, growth: float = 1.0) -> WorkTable:
        """Return the step's work, one row for each operator that was noted, in order.

        A block's layers count as often as they stand. Rows that are equal are not joined here: which of them
        are depends on the sizes (`work_columns`).
        `ledger` and `block` are those of a shallow model, None where all layers were run; the deep one trains
        `growth` times as many tensors, for each of which the optimizer works on the host.
        """
        rows: WorkTable = []
        layers = None if block is None else _Layers(ledger, block)
        current: int | None = None
        for entry, cost in zip(self._entries, self._costs(), strict=True):
            times = 1.0
            if layers is not None and entry.phase in PHASES_BY_LAYER:
                number = layers.of_path(entry.module)
                current = current if number is None else number
                times = layers.times(current)
            elif layers is not None and entry.on_host:
                times = growth
            elif layers is not None:
                cost, times = layers.of_storages(entry)
            if cost is not None:
                work = Work(cost, entry.phase, entry.is_recomputed, entry.in_loss)
                rows.append((work, times * entry.times))
        return rows

    def _costs(self) -> list[OpCost | None]:
        """Return what each entry costs; None where a compiled kernel before it does its work."""
        if not self._compiled:
            return [entry.cost for entry in self._entries]
        return fused(
            [
                Ran(entry.cost, (entry.phase, entry.is_recomputed), entry.reads, entry.writes)
                for entry in self._entries
            ]
        )

    def _place(self, ledger: Any) -> tuple[str, str, bool, bool]:
        module, category, in_forward = ledger.place()
        phase = ledger.phase
        return phase, module, phase == "backward" and in_forward and module != "", category == "logits_loss"

    def _cost(self, func: Any, args: Any, kwargs: Any, out: Any, key: Hashable) -> tuple[OpCost, bool]:
        """Return the cost of a call, and whether it works on the host's tensors only."""
        if key is None:
            try:
                key = call_key(func, args, kwargs)
            except UnhashableError:
                return _cost_of(func, args, kwargs, out)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = _cost_of(func, args, kwargs, out)
        return found

    def _note_each(
        self, ledger: Any, place: tuple[str, str, bool, bool], func: Any, args: Any, kwargs: Any, out: Any
    ) -> None:
        """Take down a multi-tensor operator as one entry a tensor."""
        for index in range(len(args[0])):
            each = tuple(_nth(value, index) for value in args)
            named = {name: _nth(value, index) for name, value in kwargs.items()}
            made = None if out is None else _nth(out, index)
            self._append(ledger, place, func, each, named, made)

    def _append(
        self,
        ledger: Any,
        place: tuple[str, str, bool, bool],
        func: Any,
        args: Any,
        kwargs: Any,
        out: Any,
        key: Hashable = None,
    ) -> None:
        cost, on_host = self._cost(func, args, kwargs, out, key)
        handles: tuple[int, ...] = ()
        if not on_host and place[0] not in PHASES_BY_LAYER and isinstance(ledger, SitedLedger):
            found = map(ledger.handle, tensors((args, tuple(kwargs.values()), out)))
            handles = tuple(handle for handle in found if handle is not None)
        entry = _Entry(cost, *place, handles, on_host, self._times)
        if self._compiled:
            entry = entry._replace(
                reads=_storages(ledger, (args, tuple(kwargs.values()))),
                writes=_storages(ledger, changed(func, args, kwargs) or out),
            )
        self._entries.append(entry)


def _storages(ledger: Any, value: Any) -> Storages:
    sizes = [(ledger.handle(tensor), tensor_bytes(tensor)) for tensor in tensors(value)]
    return tuple((handle, size) for handle, size in sizes if handle is not None)


def _nth(value: Any, index: int) -> Any:
    is_list = isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], torch.Tensor)
    return value[index] if is_list else value


def _cost_of(func: Any, args: Any, kwargs: Any, out: Any) -> tuple[OpCost, bool]:
    involved = tensors((args, tuple(kwargs.values()), out))
    if all(tensor.device.type == "cpu" for tensor in involved):
        return OpCost(func._schema.name.rpartition("::")[2], "none", "other"), True
    return op_cost(func, args, kwargs, out), False


class _Layers:
    """Which layer work belongs to, and how often that layer stands in the deep model."""

    def __init__(self, ledger: SitedLedger, block: RepeatedLayers) -> None:
        self._ledger = ledger
        self._block = block
        self._known: dict[str, int | None] = {}

    def of_path(self, path: str) -> int | None:
        """Return the layer of a module's path or a parameter's name."""
        if path not in self._known:
            self._known[path] = self._block.number(path)
        return self._known[path]

    def times(self, layer: int | None) -> float:
        """Return how often a recorded layer stands in the deep model."""
        return 1.0 + self._block.copies if layer in self._block else 1.0

    def of_storages(self, entry: _Entry) -> tuple[OpCost, float]:
        """Return the cost and number of an operator of the optimizer, by the layers of what it works on."""
        sums = [handle for handle in entry.handles if handle in self._ledger.parts]
        if sums:
            growth = self._growth(sums[0])
            return entry.cost.scaled(growth, growth if entry.handles[-1] in sums else 1), 1.0
        layers = (self._of_storage(handle) for handle in entry.handles)
        return entry.cost, self.times(next((layer for layer in layers if layer is not None), None))

    def _growth(self, handle: int) -> float:
        """Return how many times as large a storage that is a sum over layers is in the deep model."""
        parts = self._ledger.parts[handle]
        total = 0.0
        for part, share in parts.items():
            layer = self.of_path(part) if isinstance(part, str) else self._of_storage(part)
            total += share * self.times(layer)
        return total / sum(parts.values())

    def _of_storage(self, handle: int) -> int | None:
        ledger = self._ledger
        while (number := self.of_path(ledger.allocations[handle].module)) is None:
            if handle not in ledger.sources:
                return None
            handle = ledger.sources[handle]
        return number
