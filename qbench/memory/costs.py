"""The costs of a recorded step, operator by operator, and what they are for all layers where few were run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from qbench.memory.layers import Block
from qbench.memory.meta_cache import UnhashableError, metadata_key
from qbench.memory.op_costs import OpCost, dequantizations, op_cost, product_of_4bit, tensors
from qbench.memory.sites import PHASES_BY_LAYER, SitedLedger

_GEMM_4BIT = "bitsandbytes::gemm_4bit"


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
    """Storages that tell the layer where no module runs, in the optimizer's phase."""


class CostLog:
    """What a ledger notes of each operator, of the latest step only."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._known: dict[Hashable, list[OpCost]] = {}

    def begin_step(self) -> None:
        """Forget the step before."""
        self._entries.clear()

    @property
    def num_entries(self) -> int:
        """Operators noted so far in this step."""
        return len(self._entries)

    def note(self, ledger: Any, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Take down one operator that ran under a ledger."""
        place = self._place(ledger)
        if place[0] not in PHASES_BY_LAYER and args and isinstance(args[0], (list, tuple)):
            name = func._schema.name
            if name.startswith(("aten::_foreach_", "aten::_fused_")):
                self._note_each(ledger, place, func, args, kwargs, out)
                return
        for cost in self._costs(func, args, kwargs, out):
            self._entries.append(_Entry(cost, *place, self._handles(ledger, place[0], (args, out))))

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
        self._entries += [_Entry(cost, *place, ()) for cost in hidden]

    def work(self, ledger: Any = None, block: Block | None = None) -> WorkTable:
        """Return the step's work and how often it is done; a block's layers count as often as they stand.

        `ledger` and `block` are those of a shallow model, None where all layers were run.
        """
        counted: dict[Work, float] = defaultdict(float)
        layer_of = None if block is None else _layer_finder(ledger, block)
        current: int | None = None
        for entry in self._entries:
            times, cost = 1.0, entry.cost
            if block is not None and layer_of is not None:
                if entry.phase in PHASES_BY_LAYER:
                    number = layer_of(entry.module)
                    current = current if number is None else number
                    times = _times(block, current)
                else:
                    cost, times = _of_storages(entry, ledger, block, layer_of)
            counted[Work(cost, entry.phase, entry.is_recomputed, entry.in_loss)] += times
        return list(counted.items())

    def _place(self, ledger: Any) -> tuple[str, str, bool, bool]:
        module, category, in_forward = ledger.place()
        phase = ledger.phase
        return phase, module, phase == "backward" and in_forward and module != "", category == "logits_loss"

    def _costs(self, func: Any, args: Any, kwargs: Any, out: Any) -> list[OpCost]:
        if all(tensor.device.type == "cpu" for tensor in tensors((args, tuple(kwargs.values()), out))):
            # Counters of the optimizer, on the host.
            return [OpCost(func._schema.name.rpartition("::")[2], "none", "other")]
        try:
            key: Hashable = (func, metadata_key(args), metadata_key(tuple(kwargs.items())))
        except UnhashableError:
            return [op_cost(func, args, kwargs, out)]
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = [op_cost(func, args, kwargs, out)]
        return found

    def _note_each(
        self, ledger: Any, place: tuple[str, str, bool, bool], func: Any, args: Any, kwargs: Any, out: Any
    ) -> None:
        """Take down a multi-tensor operator as one entry a tensor."""
        for index in range(len(args[0])):
            each = tuple(_nth(value, index) for value in args)
            named = {name: _nth(value, index) for name, value in kwargs.items()}
            made = None if out is None else _nth(out, index)
            cost = self._costs(func, each, named, made)[0]
            self._entries.append(_Entry(cost, *place, self._handles(ledger, place[0], each)))

    def _handles(self, ledger: Any, phase: str, values: Any) -> tuple[int, ...]:
        if phase in PHASES_BY_LAYER or not isinstance(ledger, SitedLedger):
            return ()
        found = (ledger.handle(tensor) for tensor in tensors(values))
        return tuple(handle for handle in found if handle is not None)


def _nth(value: Any, index: int) -> Any:
    is_list = isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], torch.Tensor)
    return value[index] if is_list else value


def _layer_finder(ledger: SitedLedger, block: Block) -> Callable[[str], int | None]:
    known: dict[str, int | None] = {}

    def layer_of(path: str) -> int | None:
        if path not in known:
            known[path] = block.number(path)
        return known[path]

    return layer_of


def _times(block: Block, layer: int | None) -> float:
    return 1.0 + block.copies if layer in block else 1.0


def _of_storages(
    entry: _Entry, ledger: SitedLedger, block: Block, layer_of: Callable[[str], int | None]
) -> tuple[OpCost, float]:
    """Return the cost and number of an operator of the optimizer, by the layers of what it works on."""
    for handle in entry.handles:
        if handle in ledger.parts:
            return entry.cost.scaled(_growth(handle, ledger, block, layer_of)), 1.0
    layers = (_layer_of_storage(handle, ledger, layer_of) for handle in entry.handles)
    first = next((layer for layer in layers if layer is not None), None)
    return entry.cost, _times(block, first)


def _growth(handle: int, ledger: SitedLedger, block: Block, layer_of: Callable[[str], int | None]) -> float:
    """Return how many times as large a storage that is a sum over layers is in the deep model."""
    parts = ledger.parts[handle]
    total = 0.0
    for part, share in parts.items():
        layer = layer_of(part) if isinstance(part, str) else _layer_of_storage(part, ledger, layer_of)
        total += share * _times(block, layer)
    return total / sum(parts.values())


def _layer_of_storage(handle: int, ledger: SitedLedger, layer_of: Callable[[str], int | None]) -> int | None:
    seen = handle
    while (number := layer_of(ledger.allocations[seen].module)) is None and seen in ledger.sources:
        seen = ledger.sources[seen]
    return number


def total(work: WorkTable) -> tuple[float, float]:
    """Return floating-point operations and bytes moved of a step."""
    pairs = [(entry.cost.flops * times, entry.cost.num_bytes * times) for entry, times in work]
    return sum(flops for flops, _ in pairs), sum(num_bytes for _, num_bytes in pairs)
