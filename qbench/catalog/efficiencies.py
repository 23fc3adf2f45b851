"""What kernels reach of a GPU's datasheet peaks, as others measured it, each figure with its source."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from typing import Literal, TypeVar

from qbench.catalog.gpus import GpuSpec
from qbench.catalog.rows import catalog_rows
from qbench.errors import CatalogError

QUANTITIES: dict[str, str] = {
    "matmul": "Large matrix products in 16 bit, as a share of the dtype's peak.",
    "matmul_fp32": "Large matrix products in fp32 without TF32, as a share of the peak of fp32.",
    "matmul_fixed": "Fixed time of a matrix product, in addition to its arithmetic and its bytes.",
    "bandwidth": "Large reads and writes of memory, as a share of the peak bandwidth.",
    "eager": "Pointwise operators, reductions and copies in transformers' models, as a share of `bandwidth`.",
    "launch": "Shortest time from one kernel to the next.",
    "NVLink": "NCCL's bus bandwidth between the GPUs of a node, of the peak of one GPU's link.",
    "PCIe": "The same over PCIe.",
    "Infinity Fabric": "The same between modules of AMD.",
    "collective": "Time of a collective beside what its bytes take.",
    "dispatch": "The host's time for an operator of a PyTorch training step.",
}
"""What the table has a figure for."""

Case = Literal["value", "fastest", "slowest"]
"""Which of a figure is taken: itself, or the end of its range that makes a step fast or slow."""

Direction = Literal["forward", "backward"]
AttentionKernel = Literal["flash", "cudnn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """One measured figure, and between which two it lies on other shapes or cards."""

    quantity: str
    scope: str
    """Name of a GPU, an architecture, or `any`."""
    value: float
    least: float
    most: float
    unit: str
    """`share of peak`, `share of bandwidth`, or `s`."""
    source: str
    notes: str

    def of(self, case: Case) -> float:
        """Return the figure, or the end of its range that makes a step fast or slow."""
        if case == "value":
            return self.value
        return self.least if (self.unit == "s") == (case == "fastest") else self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShare:
    """What a kernel of fused attention in 16 bit reaches of the peak at one length, causal work counted."""

    kernel: str
    scope: str
    """An architecture, or `any`."""
    direction: str
    tokens: int
    share: float
    source: str
    notes: str


@functools.cache
def efficiencies() -> tuple[Efficiency, ...]:
    """Return the whole table."""
    return catalog_rows("efficiencies.csv", Efficiency, value=float, least=float, most=float)


@functools.cache
def attention_shares() -> tuple[AttentionShare, ...]:
    """Return the whole table of attention."""
    return catalog_rows("attention_shares.csv", AttentionShare, tokens=int, share=float)


def efficiency(quantity: str, gpu: GpuSpec) -> Efficiency:
    """Return the figure for a GPU: its own, else that of its architecture, else the general one.

    Raises CatalogError when the table has none.
    """
    found = _most_special([row for row in efficiencies() if row.quantity == quantity], gpu)
    if not found:
        raise CatalogError(f"no efficiency {quantity!r} for {gpu.name}; known: {', '.join(QUANTITIES)}")
    return found[0]


def attention_share(kernel: AttentionKernel, direction: Direction, gpu: GpuSpec, tokens: int) -> float:
    """Return the share of the peak that attention over so many keys reaches.

    Between two lengths of the table it grows with the logarithm; beyond its ends it stays.
    """
    rows = [row for row in attention_shares() if (row.kernel, row.direction) == (kernel, direction)]
    shares = {row.tokens: row.share for row in _most_special(rows, gpu)}
    lengths = sorted(shares)
    after = bisect_left(lengths, tokens)
    if after in (0, len(lengths)):
        return shares[lengths[min(after, len(lengths) - 1)]]
    short, long = lengths[after - 1], lengths[after]
    way = log(tokens / short) / log(long / short)
    return shares[short] + way * (shares[long] - shares[short])


_Scoped = TypeVar("_Scoped", Efficiency, AttentionShare)


def _most_special(rows: Iterable[_Scoped], gpu: GpuSpec) -> list[_Scoped]:
    """Return the rows of the GPU, else those of its architecture, else the general ones."""
    rows = list(rows)
    by_scope = ([row for row in rows if row.scope == scope] for scope in (gpu.name, gpu.architecture, "any"))
    return next(filter(None, by_scope), [])
