"""What all cards of one CUDA compute capability share: limits of a multiprocessor, size of a context."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from qbench.catalog.rows import catalog_rows, compute_capability
from qbench.units import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSize:
    """Least and most bytes that a CUDA context was reported to take outside the allocator, and by whom."""

    least: int
    most: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiprocessor:
    """Limits of one multiprocessor, which PyTorch and Triton choose kernels by."""

    max_threads: int
    shared_bytes: int
    """Shared memory of the multiprocessor."""
    shared_bytes_per_block: int
    """The most of it that a block may ask for."""


def multiprocessor(capability: tuple[int, int]) -> Multiprocessor:
    """Return the limits of a multiprocessor of a compute capability, or of the nearest older one."""
    row = _row(capability)
    return Multiprocessor(
        max_threads=row["threads_per_multiprocessor"],
        shared_bytes=row["shared_per_multiprocessor_kib"] * KIB,
        shared_bytes_per_block=row["shared_per_block_kib"] * KIB,
    )


NCCL_OF_TWO, NCCL_OF_MORE = 544 * MIB, 688 * MIB
"""What a communicator was reported to take of each A100 with NVLink, in a group of two and of more."""
NCCL_SOURCE = "NCCL: up to 544 MiB for two GPUs and 688 MiB for more (NVIDIA/nccl issue 964)"


def context_size(capability: tuple[int, int], gpus: int = 1) -> ContextSize:
    """Return what is known of the CUDA context on cards of a compute capability.

    It grows with the card and with the kernels that were loaded; no vendor publishes it. The largest figure
    that was found belongs to no named GPU, so it is the upper end for the largest ones. Of several `gpus`,
    NCCL's buffers come on top; how small they may be is not known.
    """
    row = _row(capability)
    nccl = 0 if gpus == 1 else NCCL_OF_TWO if gpus == 2 else NCCL_OF_MORE
    return ContextSize(
        least=row["context_least_bytes"],
        most=row["context_most_bytes"] + nccl,
        source="; ".join([row["context_source"], *([NCCL_SOURCE] if nccl else [])]),
    )


def smallest_context() -> int:
    """Return the least bytes that a CUDA context was reported to take on any card."""
    return min(int(row["context_least_bytes"]) for row in _rows().values())


def _row(capability: tuple[int, int]) -> dict[str, Any]:
    rows = _rows()
    return rows[max((known for known in rows if known <= capability), default=min(rows))]


@functools.cache
def _rows() -> dict[tuple[int, int], dict[str, Any]]:
    rows: tuple[dict[str, Any], ...] = catalog_rows(
        "compute_capabilities.csv",
        dict,
        compute_capability=compute_capability,
        threads_per_multiprocessor=int,
        shared_per_multiprocessor_kib=int,
        shared_per_block_kib=int,
        context_least_bytes=int,
        context_most_bytes=int,
    )
    return {row["compute_capability"]: row for row in rows}
