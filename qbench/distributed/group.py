"""The process group of a step: torch's fake one for a plan, whose collectives do nothing, or a real one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist

from qbench.errors import StepError


@contextlib.contextmanager
def fake_group(rank: int, gpus: int) -> Iterator[None]:
    """Be one rank of so many, alone. Raises StepError in a process that belongs to a group already."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise StepError("this process trains with others already; plan several GPUs in another process")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=gpus)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def real_group(backend: str) -> Iterator[None]:
    """Join the group that torchrun's variables describe, by gloo or nccl, and leave it at the end."""
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()
