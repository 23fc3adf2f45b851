"""The optimizer of a point, from torch or bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bitsandbytes as bnb
import torch
from torch.utils._python_dispatch import _disable_current_modes

LEARNING_RATE = 2e-4
"""Rate of the QLoRA paper for 7B and 13B models (arXiv 2305.14314, table 9); it moves no byte and no time."""

PAGED_MIN_ELEMENTS = 100_000
"""Smallest state that bitsandbytes pages (`get_state_buffer`: 1e5 elements)."""


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], kernels: str
) -> torch.optim.Optimizer:
    """Return the optimizer that `TrainingArguments.optim` of this name gives, for the trainable parameters.

    `kernels` is the device whose kernels are meant (cuda or cpu): torch's AdamW and SGD use their
    multi-tensor form on CUDA by default and a loop on the CPU (torch/optim/optimizer.py,
    `_default_to_fused_or_foreach`), which on meta must be said.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    foreach = kernels == "cuda"
    if name == "sgd":
        return torch.optim.SGD(trainable, lr=LEARNING_RATE, foreach=foreach)
    if name == "adamw_torch":
        return torch.optim.AdamW(trainable, lr=LEARNING_RATE, foreach=foreach)
    bits = 32 if name.endswith("32bit") else 8
    optimizer: torch.optim.Optimizer = bnb.optim.AdamW(
        trainable, lr=LEARNING_RATE, optim_bits=bits, is_paged=name.startswith("paged_")
    )
    if name.startswith("paged_") and any(parameter.is_meta for parameter in trainable):
        _page_on_meta(optimizer)
    return optimizer


def managed_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of paged state: managed memory, which torch's counters do not see."""
    tensors = (value for state in optimizer.state.values() for value in state.values())
    return sum(tensor.nbytes for tensor in tensors if is_paged(tensor))


def is_paged(value: object) -> bool:
    """Say whether bitsandbytes keeps a state tensor in managed memory."""
    return isinstance(value, torch.Tensor) and bool(getattr(value, "is_paged", False))


def _page_on_meta(optimizer: Any) -> None:
    """Let a paged optimizer run on meta: its large states are made out of the ledger's sight.

    Source: bitsandbytes/optim/optimizer.py, `get_state_buffer`: states of 100,000 elements or more are
    paged (managed memory, outside torch's allocator); smaller ones are ordinary tensors.
    """

    def get_state_buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if parameter.numel() < PAGED_MIN_ELEMENTS:
            return torch.zeros_like(parameter, dtype=dtype)
        with _disable_current_modes():
            buffer = torch.zeros_like(parameter, dtype=dtype)
        buffer.is_paged = True  # type: ignore[attr-defined]
        return buffer

    optimizer.get_state_buffer = get_state_buffer
    optimizer.prefetch_state = lambda parameter: None
