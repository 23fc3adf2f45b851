"""A ledger that can be stretched: it also knows each event's module and each allocation's source tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from qbench.memory.history.ledger import Ledger

_NORMS = torch.ops.aten._foreach_norm.Scalar
"""The multi-tensor operator whose scratch on CUDA grows with the number of tensors (`scratch`)."""

PHASES_BY_LAYER = ("forward", "loss", "backward")
"""Phases in which the model's layers run one after the other; elsewhere loops go over parameters."""


class SitedLedger(Ledger):
    """A ledger with `sites`, `sources` and `parts` beside its history.

    `sites` has the module path in which each event happened. `sources`, for what is allocated outside the
    layers' own phases: the handle of the tensor that an allocation was made from, as an optimizer's state
    is from its parameter. `parts`, for an allocation whose size is a sum: the bytes of each part by the
    handle of its tensor or by the parameter's name.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.sites: list[str] = []
        self.sources: dict[int, int] = {}
        self.parts: dict[int, dict[int | str, float]] = {}
        self._of_nothing: set[int] = set()
        """Handles of what was made of no tensor, and not used with one so far."""

    def note(self, handle: int, size: int) -> None:
        """Take down one event and where it happens."""
        self.events.append((handle, size))
        self.sites.append(self.place()[0] if size < 0 else self.allocations[handle].module)

    def allocate(self, num_bytes: int, op: str, category: str, parts: Mapping[str, int] | None = None) -> int:
        """Record memory out of the dispatcher's sight, and of which parameters it is the sum."""
        handle = super().allocate(num_bytes, op, category)
        if parts is not None:
            self.parts[handle] = {name: float(size) for name, size in parts.items()}
        return handle

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first_new = len(self.allocations)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if out is NotImplemented or self.phase in PHASES_BY_LAYER:
            return out
        if self._of_nothing:
            self._adopt(args)
        if len(self.allocations) > first_new:
            self._derive(out, args, first_new)
            if func is _NORMS and self.allocations[first_new].op != str(func):
                self._add_parts(first_new, _tensors(args[0]))
            if not any(True for _ in _nested_tensors(args)):
                self._of_nothing.update(range(first_new, len(self.allocations)))
        return out

    def _adopt(self, args: Any) -> None:
        """Say of what was made of nothing that it was made from the first tensor that it is used with.

        The scales of paged states are such, since nothing is seen of the states themselves.
        """
        used = [handle for tensor in _tensors(args) if (handle := self.handle(tensor)) is not None]
        known = [handle for handle in used if handle not in self._of_nothing]
        if known:
            adopted = self._of_nothing.intersection(used)
            self.sources.update(dict.fromkeys(adopted, known[0]))
            self._of_nothing -= adopted

    def _derive(self, out: Any, args: Any, first_new: int) -> None:
        """Note which tensor each new output was made from: its like in a list, else the first there is."""
        outs, given = _tensors(out), _tensors(args[0]) if args else []
        several = isinstance(args[0], (list, tuple)) if args else False
        if several and len(outs) == len(given):
            for made, origin in zip(outs, given, strict=True):
                self._link(made, origin, first_new)
        elif several and len(given) > 1:
            self._sum_up(outs, given, first_new)
        else:
            known = [tensor for tensor in _nested_tensors(args) if self._known_before(tensor, first_new)]
            for made in outs if known else ():
                self._link(made, known[0], first_new)

    def _link(self, made: torch.Tensor, origin: torch.Tensor, first_new: int) -> None:
        handle, source = self.handle(made), self.handle(origin)
        if handle is not None and source is not None and source < first_new <= handle:
            self.sources.setdefault(handle, source)
            if (
                source in self.parts
                and self.allocations[handle].num_bytes == self.allocations[source].num_bytes
            ):
                # One that is as large is a sum of the same parts.
                self.parts.setdefault(handle, self.parts[source])

    def _sum_up(self, outs: list[torch.Tensor], given: list[torch.Tensor], first_new: int) -> None:
        """Note that an output holds all tensors of a list side by side, as stacking and joining make it."""
        for made in outs:
            handle = self.handle(made)
            if handle is not None and handle >= first_new:
                self._add_parts(handle, given)

    def _add_parts(self, handle: int, given: list[torch.Tensor]) -> None:
        num_bytes, total = self.allocations[handle].num_bytes, sum(tensor.numel() for tensor in given)
        for tensor in given:
            source = self.handle(tensor)
            if source is not None:
                share = num_bytes * tensor.numel() / total
                parts = self.parts.setdefault(handle, {})
                parts[source] = parts.get(source, 0.0) + share

    def _known_before(self, tensor: torch.Tensor, first_new: int) -> bool:
        handle = self.handle(tensor)
        return handle is not None and handle < first_new


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [item for item in value if isinstance(item, torch.Tensor)]
    return []


def _nested_tensors(args: Any) -> Iterator[torch.Tensor]:
    for value in args:
        yield from _tensors(value)
