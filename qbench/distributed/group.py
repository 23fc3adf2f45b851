"""The process group of a step: torch's fake one for a plan, whose collectives do nothing, or a real one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

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


def join_group(backend: str, store: Path, rank: int, gpus: int) -> None:
    """Join a group by gloo or nccl, whose processes meet in a file; it ends with this process."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(gpus), LOCAL_WORLD_SIZE=str(gpus))
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=gpus)
