"""torchao's AdamW in 8 or 4 bit: codes, a scale for each block and a code book for each state.

Followed is torchao 0.18, optim/adam.py, subclass_8bit.py and subclass_4bit.py. On a GPU torchao runs,
compiled: its kernels read and write the state in place and hold scales beside it. On the CPU
torch operators do so.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch

from qbench.errors import StepError

LEAST_ELEMENTS = 4096
"""Smallest tensor whose state is quantized, if it is a multiple of the block (`_new_buffer`)."""
_BLOCKS = {8: 256, 4: 128}
BETAS, EPS, DECAY = (0.9, 0.999), 1e-8, 1e-2


def low_bit_adamw(parameters: Iterable[Any], lr: float, bits: int, kernels: str) -> torch.optim.Optimizer:
    """Return torchao's optimizer on a GPU, elsewhere what it allocates. Raises StepError without torchao."""
    listed = list(parameters)
    groups = [each["params"] if isinstance(each, dict) else [each] for each in listed]
    if not any(parameter.is_cuda for group in groups for parameter in group):
        return LowBitAdamW(listed, lr, bits, kernels)
    try:
        made: torch.optim.Optimizer = getattr(importlib.import_module("torchao.optim"), f"AdamW{bits}bit")(
            listed, lr=lr
        )
    except ImportError as error:
        raise StepError(
            f"optim adamw_torch_{bits}bit runs torchao's on a GPU, which could not be loaded ({error}); "
            "pip install torchao"
        ) from error
    return made


class LowBitAdamW(torch.optim.Optimizer):
    """The state of `_AdamBase`, and a step over one parameter after the other."""

    def __init__(self, parameters: Any, lr: float, bits: int, kernels: str) -> None:
        self._bits, self._kernels = bits, kernels
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"])

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["count"] = 0
            for name in ("exp_avg", "exp_avg_sq"):
                state |= self._new_buffer(name, parameter)
        state["count"] += 1
        if self._kernels == "cuda":
            for name in ("exp_avg", "exp_avg_sq"):
                if f"{name}.scale" in state:
                    torch.empty_like(state[f"{name}.scale"])
            parameter.addcdiv_(gradient, gradient)
            return
        average = self._read(state, "exp_avg", parameter).lerp_(gradient.float(), 1 - BETAS[0])
        square = self._read(state, "exp_avg_sq", parameter).lerp_(gradient.float().square(), 1 - BETAS[1])
        self._write(state, "exp_avg", average)
        self._write(state, "exp_avg_sq", square)
        rooted = square.sqrt_().div_((1 - BETAS[1] ** state["count"]) ** 0.5).add_(EPS)
        parameter.mul_(1 - lr * DECAY)
        parameter.addcdiv_(
            average.to(parameter.dtype),
            rooted.to(parameter.dtype),
            value=-lr / (1 - BETAS[0] ** state["count"]),
        )

    def _new_buffer(self, name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        block = _BLOCKS[self._bits]
        if parameter.numel() < LEAST_ELEMENTS or parameter.numel() % block:
            return {name: torch.zeros_like(parameter)}
        device = parameter.device
        count = parameter.numel() * self._bits // 8
        return {
            f"{name}.codes": torch.zeros(count, dtype=torch.uint8, device=device),
            f"{name}.scale": torch.zeros(parameter.numel() // block, device=device),
            f"{name}.qmap": _code_book(2**self._bits, name == "exp_avg").to(device),
        }

    def _read(self, state: dict[str, Any], name: str, like: torch.Tensor) -> torch.Tensor:
        if name in state:
            whole: torch.Tensor = state[name].float()
            return whole.clone() if whole is state[name] else whole
        codes = state[f"{name}.codes"]
        if self._bits == 4:
            codes = torch.stack([codes >> 4, codes & 15], dim=-1)
        scale: torch.Tensor = state[f"{name}.scale"]
        values = state[f"{name}.qmap"][codes.int()].view(len(scale), -1) * scale.view(-1, 1)
        found: torch.Tensor = values.view(like.shape)
        return found

    def _write(self, state: dict[str, Any], name: str, values: torch.Tensor) -> None:
        if name in state:
            state[name].copy_(values)
            return
        rows = values.view(len(state[f"{name}.scale"]), -1)
        scale = rows.abs().amax(-1).clip(1e-12)
        book = state[f"{name}.qmap"]
        codes = (
            torch.bucketize(rows / scale.view(-1, 1), (book[1:] + book[:-1]) / 2).to(torch.uint8).flatten()
        )
        state[f"{name}.codes"].copy_(codes if self._bits == 8 else (codes[::2] << 4) | codes[1::2])
        state[f"{name}.scale"].copy_(scale)


def _code_book(size: int, signed: bool) -> torch.Tensor:
    """Return values a code stands for, evenly spaced: torchao's are finer near 0, which moves no byte."""
    return torch.linspace(-1 if signed else 0, 1, size)
