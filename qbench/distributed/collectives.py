"""The collectives of a step: what of each group of weights or gradients goes between GPUs, and how often."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qbench.records.ranks import Collective

_NAMES = {
    "reduce_scatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "all_reduce": "all_reduce",
    "gather": "all_gather",
    "broadcast": "broadcast",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
}
"""Part of an operator's name in the namespaces of torch.distributed, and what users call it."""
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Call:
    """One collective."""

    step: int
    """Number of the optimizer step, from 0."""
    op: str
    group: str
    """Module that is gathered or whose gradients are added up; a bucket's number; empty for anything else."""
    phase: str
    num_bytes: int
    """Of the whole message: what an all-gather puts together, what the others take."""
    times: int = 1
    """Micro-batches that the one that ran stands for."""


class CollectiveLog:
    """Takes down each collective of a ledger's steps. `group` is the one that runs now."""

    def __init__(self, ledger: Any, reduces_each_pass: bool) -> None:
        self._ledger = ledger
        self._reduces_each_pass = reduces_each_pass
        self.calls: list[Call] = []
        self.group = ""

    def note(self, func: Any, args: Any, out: Any) -> None:
        """Take down an operator of torch.distributed; one that only waits does not count."""
        name = func._schema.name
        op = next((said for part, said in _NAMES.items() if part in name), None)
        if op is not None:
            self.add(op, max((sum(_sizes(value)) for value in (*args, out)), default=0), self.group)

    def add(self, op: str, num_bytes: int, group: str) -> None:
        """Take down a collective."""
        ledger = self._ledger
        step = sum(name == "optimizer" for _, name in ledger.marks) - (ledger.phase == "optimizer")
        # Gradients are added up once an update, in its last micro-batch, unless each adds to shards.
        times = ledger.times if op == "all_gather" or self._reduces_each_pass else 1
        self.calls.append(Call(step, op, group, ledger.phase, num_bytes, times))


def of_last_step(
    calls: Iterable[Call], times: Callable[[str], int] = lambda group: 1, growth: float = 1.0
) -> list[Collective]:
    """Return what the last step calls, alike ones counted together, in the order of the first of each.

    `times` says for how many layers a group stands, `growth` how many times as many tensors all layers train:
    the optimizer's phase sends a number of each. Layers are joined: their number becomes `*`.
    """
    found = list(calls)
    last = max((call.step for call in found), default=0)
    counted: Counter[tuple[str, str, str, int]] = Counter()
    for call in found:
        if call.step == last and call.num_bytes:
            num_bytes = round(call.num_bytes * growth) if call.phase == "optimizer" else call.num_bytes
            kind = (call.op, _NUMBER.sub(".*", call.group), call.phase, num_bytes)
            counted[kind] += call.times * times(call.group)
    return [
        {"op": op, "group": group, "phase": phase, "bytes": num_bytes, "calls": count}
        for (op, group, phase, num_bytes), count in counted.items()
    ]


def _sizes(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _sizes(item)
    elif not isinstance(value, Mapping) and hasattr(value, "untyped_storage"):
        yield value.numel() * value.element_size()
