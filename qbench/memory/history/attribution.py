"""Which module an allocation belongs to, in forward, in recomputation and in backward.

Forward hooks keep a stack of module names. Autograd numbers its nodes in the order in which forward made
them, so that a number noted at each module boundary tells the module of a node that runs in backward.
"""

from __future__ import annotations

import bisect
from typing import Any

import torch


class Attribution:
    """Tells the present module path, and whether it belongs to the loss part of the step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.in_loss = False
        self._stack: list[str] = []
        self._numbers: list[int] = []
        self._places: list[tuple[str, bool]] = []
        self._hooks: list[Any] = []
        for name, module in model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            # Checkpointing ends a recomputation early with an exception; the stack must unwind then too.
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def detach(self) -> None:
        """Take all hooks off the model; they would slow a timed step."""
        for hook in self._hooks:
            hook.remove()

    def _entering(self, name: str) -> Any:
        def enter(module: torch.nn.Module, args: Any) -> None:
            self._stack.append(name)
            self._note()

        return enter

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()
        self._note()

    def _note(self) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._places.append((self._stack[-1] if self._stack else "", self.in_loss))

    def place(self) -> tuple[str, bool, bool]:
        """Return (module path, part of the loss, inside a forward pass or recomputation)."""
        node = torch._C._current_autograd_node()
        # In backward the stack is empty, unless checkpointing runs the forward of a layer again.
        if node is None or self._stack:
            return (self._stack[-1] if self._stack else ""), self.in_loss, True
        index = bisect.bisect_right(self._numbers, node._sequence_nr()) - 1
        module, in_loss = self._places[index] if index >= 0 else ("", False)
        return module, in_loss, False
