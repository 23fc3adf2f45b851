"""The card of a null GPU, as environment variables that the shim reads when CUDA or NVML is first called."""

from __future__ import annotations

import os
from typing import Literal

from qbench.catalog.capabilities import context_size, multiprocessor
from qbench.catalog.gpus import GpuSpec, gpus
from qbench.errors import CatalogError

DRIVER_NAME = "nullgpu"
"""What NVML gives as the version of the driver (shim/nvml.c)."""

AddressOrder = Literal["up", "down"]
"""Which free addresses the card hands out first. The driver publishes neither, so both are looked at."""


def card_environment(
    gpu: GpuSpec, *, order: AddressOrder = "up", count: int = 1, context_bytes: int | None = None
) -> dict[str, str]:
    """Return the variables of a card of the catalog; see qbench/nullgpu/shim/card.c.

    A context takes the most that was reported for its compute capability, as in a plan, unless its bytes are
    given. Raises CatalogError for a card without CUDA.
    """
    if gpu.compute_capability is None or gpu.multiprocessors is None:
        raise CatalogError(f"{gpu.name} has no CUDA; name an NVIDIA GPU")
    limits = multiprocessor(gpu.compute_capability)
    context = context_size(gpu.compute_capability).most if context_bytes is None else context_bytes
    facts = {
        "NULLGPU_NAME": null_name(gpu),
        "NULLGPU_CC": "{}.{}".format(*gpu.compute_capability),
        "NULLGPU_SM": gpu.multiprocessors,
        "NULLGPU_THREADS_PER_SM": limits.max_threads,
        "NULLGPU_SHARED_PER_SM": limits.shared_bytes,
        "NULLGPU_SHARED_PER_BLOCK": limits.shared_bytes_per_block,
        "NULLGPU_MEMORY": gpu.memory_bytes,
        "NULLGPU_CONTEXT": context,
        "NULLGPU_COUNT": count,
        "NULLGPU_VA": order,
    }
    return {name: str(fact) for name, fact in facts.items()}


def null_name(gpu: GpuSpec) -> str:
    """Return the name under which programs see the card, which cannot be mistaken for a GPU's."""
    return f"NVIDIA {gpu.name} (null GPU)"


def card_here() -> str | None:
    """Return the card of the catalog that the null GPU of this process is; None where it is of no catalog."""
    name = os.environ.get("NULLGPU_NAME")
    return next((gpu.name for gpu in gpus() if null_name(gpu) == name), None)
