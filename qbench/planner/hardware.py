"""What CUDA takes beside the tensors and the context, by the card: kernels and library workspaces."""

from __future__ import annotations

from qbench.catalog.gpus import GpuSpec
from qbench.memory.kernels.choices import Card


def library_buffers(card: Card) -> dict[str, int]:
    """Return the bytes of cuBLAS workspaces by the phase whose first matrix product takes each.

    Forward runs on the caller's thread and backward on autograd's, and each thread has a cuBLAS handle.
    """
    return dict.fromkeys(("forward", "backward"), card.workspace_bytes)


def card_of(gpu: GpuSpec | None) -> Card:
    """Return what of a GPU decides between kernels; Ampere where none is named, or one without CUDA."""
    if gpu is None or gpu.compute_capability is None:
        return Card()
    return Card(capability=gpu.compute_capability, multiprocessors=gpu.multiprocessors)
