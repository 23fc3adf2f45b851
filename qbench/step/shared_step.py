"""How a step runs a model that several processes train together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class SharedStep:
    """What takes the place of the model's own forward pass, made by a strategy."""

    make_forward: Callable[[], Any]
    """Return the module to call, once, before the first step."""
    num_ranks: int
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]]
    """Make the context of a micro-batch after which gradients are not exchanged, as in Trainer all but the
    last of an update."""


Share = Callable[[Any, torch.device], SharedStep]
"""Wraps a built model."""


def gathered_sum(count: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Return the sum of a scalar over all ranks, as Trainer's `get_batch_samples` gathers it.

    Source: accelerate/utils/operations.py, `_gpu_gather`, which makes a row of it first.
    """
    row = count.clone()[None]
    rows = torch.empty(num_ranks, dtype=row.dtype, device=row.device)
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(rows, row)
    return rows.view(-1).sum()
