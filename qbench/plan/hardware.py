"""What CUDA takes beside the tensors: library workspaces and the context."""

from __future__ import annotations

from qbench.catalog.gpus import GpuSpec
from qbench.units import KIB

CUBLAS_WORKSPACE_BYTES = 4096 * KIB * 2 + 16 * KIB * 8
"""8.125 MiB a handle and stream before Hopper (ATen/cuda/CublasHandlePool.cpp, `:4096:2:16:8`)."""

CUBLAS_WORKSPACE_BYTES_HOPPER = 4096 * KIB * 8
"""32 MiB from compute capability 9.0 on (same file)."""

CUDA_CONTEXT_BYTES = (287_000_000, 400_000_000)
"""Least and most that a CUDA context was reported to take outside the allocator.

287 MB with lazy loading: pytorch/pytorch pull request 86509; 300 to 400 MB: issues 107667 and 109888.
"""

DEFAULT_COMPUTE_CAPABILITY = (8, 0)
"""Assumed where no GPU is named: Ampere, the oldest with bf16."""


def library_buffers(capability: tuple[int, int]) -> dict[str, int]:
    """Return the bytes of cuBLAS workspaces by the phase whose first matrix product takes each.

    Forward runs on the caller's thread and backward on autograd's, and each thread has a cuBLAS handle.
    """
    size = CUBLAS_WORKSPACE_BYTES_HOPPER if capability >= (9, 0) else CUBLAS_WORKSPACE_BYTES
    return {"forward": size, "backward": size}


def has_flash(capability: tuple[int, int]) -> bool:
    """Say whether torch's flash attention runs (ATen/native/transformers/cuda/sdp_utils.cpp: from sm_80)."""
    return capability >= (8, 0)


def capability_of(gpus: tuple[GpuSpec, ...]) -> tuple[int, int]:
    """Return the compute capability to plan for: that of the first GPU named, else Ampere."""
    if gpus and gpus[0].compute_capability is not None:
        return gpus[0].compute_capability
    return DEFAULT_COMPUTE_CAPABILITY


def fits(device_bytes: int, gpu: GpuSpec) -> bool:
    """Say whether so many bytes, context included, fit the memory that torch reports for a card."""
    return device_bytes <= gpu.memory_bytes


def headroom_bytes(device_bytes: int, gpu: GpuSpec) -> int:
    """Return the bytes left on the card, negative when the point does not fit."""
    return gpu.memory_bytes - device_bytes
