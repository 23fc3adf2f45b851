"""How a step runs a model that several processes train together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from qbench.errors import StepError
from qbench.scenario.schema import Point


class Engine(Protocol):
    """What makes passes and updates itself."""

    def backward(self, loss: torch.Tensor) -> None:
        """Go backward from a loss that is divided by the number of micro-batches already."""

    def update(self) -> None:
        """Clip, update and clear gradients."""


@dataclass(frozen=True, slots=True)
class SharedStep:
    """What takes the place of the model's own forward pass, made by a strategy."""

    make_forward: Callable[[torch.optim.Optimizer], Any]
    """Return the module to call, once, before the first step."""
    num_ranks: int
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]]
    """Make the context of a micro-batch after which gradients are not exchanged, as in Trainer all but the
    last of an update."""
    engine: Engine | None = None
    """Goes backward and updates in the place of loss and optimizer."""


Share = Callable[[Any, torch.device], SharedStep]
"""Wraps a built model."""


def shared_step(model: Any, point: Point, device: torch.device, share: Share | None) -> SharedStep | None:
    """Return how the GPUs of a point run a model; None for one GPU. Raises StepError in one process alone."""
    if point.distributed is None:
        return None
    if point.train.task != "sft":
        raise StepError(f"task {point.train.task} is planned for one GPU only; leave out distributed")
    if share is None:
        raise StepError(f"the point runs in {point.distributed.gpus} processes, and this is one alone")
    return share(model, device)


def gathered_sum(count: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Return the sum of a scalar over all ranks, as Trainer's `get_batch_samples` gathers it.

    Source: accelerate/utils/operations.py, `_gpu_gather`, which makes a row of it first.
    """
    row = count.clone()[None]
    rows = torch.empty(num_ranks, dtype=row.dtype, device=row.device)
    gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(rows, row)
    return rows.view(-1).sum()
