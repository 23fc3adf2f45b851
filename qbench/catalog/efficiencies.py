"""What kernels reach of a GPU's datasheet peaks, as others measured it, each figure with its source."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from qbench.catalog.gpus import GpuSpec
from qbench.catalog.rows import catalog_rows
from qbench.errors import CatalogError

QUANTITIES: dict[str, str] = {
    "matmul": "Matrix products, of the peak of their dtype.",
    "attention_forward": "Fused attention in 16 bit, forward, of the tensor cores' peak.",
    "attention_backward": "The same, backward.",
    "bandwidth": "Reading and writing memory in large pieces, of its peak.",
    "launch": "Shortest time from one kernel to the next.",
    "dispatch": "The host's time for an operator of a PyTorch training step.",
}
"""What the table has a figure for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """One measured figure."""

    quantity: str
    scope: str
    """Name of a GPU, an architecture, or `any`."""
    value: float
    unit: str
    """`share of peak`, or `s`."""
    source: str
    notes: str


@functools.cache
def efficiencies() -> tuple[Efficiency, ...]:
    """Return the whole table."""
    return catalog_rows("efficiencies.csv", Efficiency, value=float)


def efficiency(quantity: str, gpu: GpuSpec) -> Efficiency:
    """Return the figure for a GPU: its own, else that of its architecture, else the general one.

    Raises CatalogError when the table has none.
    """
    rows = {row.scope: row for row in efficiencies() if row.quantity == quantity}
    for scope in (gpu.name, gpu.architecture, "any"):
        if scope in rows:
            return rows[scope]
    raise CatalogError(f"no efficiency {quantity!r} for {gpu.name}; known: {', '.join(QUANTITIES)}")
