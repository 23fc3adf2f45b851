"""Checkpointed layers whose inputs wait on the host: axolotl's form, and Unsloth's with buffers on the card.

Followed are axolotl 067b021, monkeypatch/gradient_checkpointing/offload_cpu.py (`checkpoints`), and
unsloth-zoo 2026.8, gradient_checkpointing.py, `UnslothCheckpointFunction` (`unsloth`): inputs of more than
2 MiB go to the host, but for the last layer's, and come back into one of two buffers that stay on the card.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Context = Callable[[], contextlib.AbstractContextManager[Any]]

SMALLEST_ELEMENTS = 2 * 2**20 // 2
"""Of an input that goes to the host (`MINIMUM_SIZE`: 2 MiB in 16 bit)."""


@dataclass
class Buffers:
    """What is on the card of Unsloth's checkpoints: two buffers, and which layer is the last one."""

    layers: int = 0
    """Layers of a forward pass, counted in the first."""
    current: int = 0
    is_first: bool = True
    slot: int = 0
    room: list[torch.Tensor] = field(default_factory=list)

    def takes(self, hidden: torch.Tensor) -> bool:
        """Say whether the input of the next layer goes to the host; grow the buffers to its size."""
        self.current += 1
        if self.is_first:
            self.layers += 1
        if hidden.numel() <= SMALLEST_ELEMENTS or (self.current == self.layers and not self.is_first):
            return False
        # The second buffer is used once a first pass has shown that there is room for it.
        while len(self.room) < (1 if self.is_first else 2):
            self.room.append(torch.empty(SMALLEST_ELEMENTS, dtype=torch.bfloat16, device=hidden.device))
        for index, buffer in enumerate(self.room):
            if buffer.numel() < hidden.numel():
                self.room[index] = torch.empty(hidden.numel(), dtype=buffer.dtype, device=hidden.device)
        return True

    def back(self, shape: torch.Size) -> torch.Tensor:
        """Return the buffer that the input of a layer comes back into."""
        self.slot ^= 1
        buffer = self.room[self.slot % len(self.room)]
        return buffer[: shape.numel()].view(shape)

    def end(self) -> None:
        """Hear that backward has begun."""
        self.is_first, self.current = False, 0


def offloaded_checkpoint(autocast: Context | None, buffers: Buffers | None) -> Callable[..., Any]:
    """Return what runs a layer without keeping its input on the card; `buffers` are those of Unsloth.

    `autocast` makes the context that a recomputation on meta needs.
    """

    def run(function: Callable[..., Any], hidden: torch.Tensor, *others: Any) -> Any:
        made: Any = _Offloaded
        return made.apply(function, autocast or contextlib.nullcontext, buffers, hidden, *others)

    return run


class _Offloaded(torch.autograd.Function):
    """Runs a layer without gradients, and again in backward with its input from the host."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Any],
        autocast: Context,
        buffers: Buffers | None,
        hidden: torch.Tensor,
        *others: Any,
    ) -> Any:
        ctx.function, ctx.autocast, ctx.buffers, ctx.others = function, autocast, buffers, others
        ctx.shape, ctx.dtype, ctx.device = hidden.shape, hidden.dtype, hidden.device
        ctx.goes = buffers is None or buffers.takes(hidden)
        kind = hidden.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            ctx.autocast = partial(torch.autocast, kind, dtype=torch.get_autocast_dtype(kind))
        if not ctx.goes:
            ctx.save_for_backward(hidden)
        elif not hidden.is_meta:
            ctx.on_host = hidden.detach().to("cpu", copy=hidden.device.type == "cpu")
        with torch.no_grad():
            return function(hidden, *others)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        buffers: Buffers | None = ctx.buffers
        if buffers is not None:
            buffers.end()
        if not ctx.goes:
            (hidden,) = ctx.saved_tensors
            hidden = hidden.detach()
        elif buffers is None:
            hidden = torch.empty(ctx.shape, dtype=ctx.dtype, device=ctx.device)
        else:
            hidden = buffers.back(ctx.shape).detach()
        if ctx.goes and ctx.device.type != "meta":
            hidden = hidden.copy_(ctx.on_host)
        hidden.requires_grad_(True)
        with torch.enable_grad(), ctx.autocast():
            output = ctx.function(hidden, *ctx.others)
        first = output[0] if isinstance(output, tuple) else output
        torch.autograd.backward(first, grads[0])
        return None, None, None, hidden.grad, *(None for _ in ctx.others)
