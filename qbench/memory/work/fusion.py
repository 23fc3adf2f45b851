"""What torch.compile makes of a step's operators: one kernel of each run of pointwise work.

Inductor joins pointwise operators, reductions and copies that follow one another, and leaves products and
attention to their libraries; what only a backward's pointwise work would read is computed again there rather
than kept (Ansel et al., PyTorch 2, ASPLOS 2024: section 4.2 on fusion, section 3.6 on AOTAutograd's min-cut
partitioner). So a fused kernel reads once what was made before it, and writes what is read after it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qbench.memory.work.op_costs import INTO_BUFFERS, OpCost

_FUSIBLE = ("elementwise", "reduction", "copy")

Storages = tuple[tuple[int, int], ...]
"""Handle and bytes of each."""


class Ran(NamedTuple):
    """One operator, and the storages that it reads and writes."""

    cost: OpCost
    part: tuple[str, bool]
    """Phase, and whether it is recomputed: a compiled graph of its own."""
    reads: Storages
    writes: Storages


def fused(ran: Sequence[Ran]) -> list[OpCost | None]:
    """Return the cost that each operator has when compiled; None where another kernel does its work.

    The optimizer is not compiled. Views cost nothing.
    """
    groups = _groups(ran)
    used = _Used(ran, groups)
    costs: list[OpCost | None] = []
    seen: set[int] = set()
    for index, (one, group) in enumerate(zip(ran, groups, strict=True)):
        if group is None:
            costs.append(None if one.cost.kind == "none" and one.part[0] != "optimizer" else one.cost)
        elif group in seen:
            costs.append(None)
        else:
            seen.add(group)
            costs.append(used.cost_of(group, index))
    return costs


def _groups(ran: Sequence[Ran]) -> list[int | None]:
    """Return the number of each operator's fused kernel, None where it is a kernel of its own or a view."""
    found: list[int | None] = []
    number, part = 0, None
    for one in ran:
        if one.cost.kind == "none":
            found.append(None)
            continue
        if one.part[0] == "optimizer" or one.cost.kind not in _FUSIBLE or one.cost.op in INTO_BUFFERS:
            number, part = number + 1, None
            found.append(None)
            continue
        if one.part != part:
            number, part = number + 1, one.part
        found.append(number)
    return found


class _Used:
    """Who makes and reads which storage."""

    def __init__(self, ran: Sequence[Ran], groups: Sequence[int | None]) -> None:
        self._ran = ran
        self._members: dict[int, list[int]] = defaultdict(list)
        self._makers: dict[int, int] = {}
        """Fused kernel that first writes a storage."""
        self._before: set[int] = set()
        """Storages that were there before their first writer, which changes them in place."""
        self._kept: set[int] = set()
        """Storages of fused kernels that others read; the rest never gets to memory."""
        part_of: dict[int, tuple[str, bool]] = {}
        for index, (one, group) in enumerate(zip(ran, groups, strict=True)):
            if group is not None:
                self._members[group].append(index)
            for handle, _ in one.reads:
                maker = self._makers.get(handle)
                if maker is not None and maker != group and (group is None or part_of[handle] == one.part):
                    self._kept.add(handle)
            for handle, _ in one.writes if group is not None else ():
                if self._makers.setdefault(handle, group or 0) == group and handle not in part_of:
                    part_of[handle] = one.part
                    if any(handle == read for read, _ in one.reads):
                        self._before.add(handle)

    def cost_of(self, group: int, first: int) -> OpCost:
        """Return the cost of a fused kernel."""
        written = {
            handle: size
            for index in self._members[group]
            for handle, size in self._ran[index].writes
            if handle in self._kept | self._before or self._makers.get(handle) != group
        }
        read = dict(self._inputs(group, {group}))
        dtype = self._ran[first].cost.dtype
        return OpCost("fused", "elementwise", dtype, 0, sum(read.values()), sum(written.values()))

    def _inputs(self, group: int, seen: set[int]) -> Iterator[tuple[int, int]]:
        """Yield what a kernel reads; in place of what was not kept, what that is computed from again."""
        for index in self._members[group]:
            for handle, size in self._ran[index].reads:
                maker = self._makers.get(handle)
                if maker is None or handle in self._before or (handle in self._kept and maker != group):
                    yield handle, size
                elif maker != group and maker not in seen:
                    seen.add(maker)
                    yield from self._inputs(maker, seen)
