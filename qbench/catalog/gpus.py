"""GPUs: memory that a program can use, bandwidth and peak arithmetic, each with its source."""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass, field

from qbench.catalog.names import DATA, NameIndex, nearest_text
from qbench.errors import CatalogError
from qbench.units import GIB

DTYPES = ("bf16", "fp16", "tf32", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One device as CUDA or ROCm shows it: a board with two dies is two of them."""

    name: str
    """Name in the catalog."""
    aliases: tuple[str, ...]
    """Other names, among them those that drivers report."""
    vendor: str
    """NVIDIA or AMD."""
    architecture: str
    """Architecture, such as Ampere."""
    compute_capability: tuple[int, int] | None
    """CUDA compute capability; None for AMD."""
    nominal_gb: int
    """Memory as it is sold, in GB; more than a program gets."""
    memory_bytes: int
    """Lowest total memory seen from a program (torch's total_memory), so that what fits here fits on
    every such card. The CUDA context (0.3 to 0.6 GiB) is still to be taken off."""
    memory_basis: str
    """How memory_bytes is known: read by torch or nvidia-smi (minus a margin), estimate, or nominal."""
    memory_source: str
    """Where memory_bytes comes from."""
    memory_bandwidth_bytes_per_s: float
    """Peak bandwidth of the device memory."""
    peak_flops: dict[str, float | None] = field(hash=False)
    """Peak dense FLOP/s with fp32 accumulation by dtype (bf16, fp16, tf32, fp32); None where the
    hardware lacks the dtype or no figure was found."""
    tdp_w: float
    """Board power limit in watts."""
    release_year: int
    """Year in which the device came out."""
    source: str
    """Where bandwidth, arithmetic and power come from."""
    notes: str
    """What a user should know; empty when there is nothing."""


@functools.cache
def gpus() -> tuple[GpuSpec, ...]:
    """Return all GPUs of the catalog, vendors and generations together."""
    with (DATA / "gpus.csv").open(encoding="utf-8", newline="") as lines:
        return tuple(_spec(row) for row in csv.DictReader(lines))


def find_gpu(name: str) -> GpuSpec:
    """Return the GPU of that name or alias; case and a leading vendor name are ignored.

    Raises CatalogError with the nearest names when there is none.
    """
    spec = _index().find(name) or _index().find(_without_vendor(name))
    if spec is None:
        near = nearest_text(_index().nearest(_without_vendor(name)))
        raise CatalogError(f"GPU {name!r} is not in the catalog{near}; give a name that `qbench gpus` lists")
    return spec


def other_variants(name: str) -> tuple[GpuSpec, ...]:
    """Return the GPUs that a short name such as A100 could mean beside the one that `find_gpu` gives."""
    found = find_gpu(name)
    start = _without_vendor(name).casefold()
    if start == found.name.casefold():
        return ()
    others = (spec for spec in gpus() if spec != found)
    return tuple(spec for spec in others if spec.name.casefold().startswith((f"{start} ", f"{start}-")))


def _without_vendor(name: str) -> str:
    return re.sub(r"^(nvidia|amd)\s+", "", name, flags=re.IGNORECASE)


@functools.cache
def _index() -> NameIndex[GpuSpec]:
    return NameIndex((spec, (spec.name, *spec.aliases)) for spec in gpus())


def _spec(row: dict[str, str]) -> GpuSpec:
    return GpuSpec(
        name=row["name"],
        aliases=tuple(row["aliases"].split(";")) if row["aliases"] else (),
        vendor=row["vendor"],
        architecture=row["architecture"],
        compute_capability=_compute_capability(row["compute_capability"]),
        nominal_gb=int(row["nominal_gb"]),
        memory_bytes=int(float(row["memory_gib"]) * GIB),
        memory_basis=row["memory_basis"],
        memory_source=row["memory_source"],
        memory_bandwidth_bytes_per_s=float(row["bandwidth_gb_per_s"]) * 1e9,
        peak_flops={dtype: _flops(row[f"{dtype}_tflops"]) for dtype in DTYPES},
        tdp_w=float(row["tdp_w"]),
        release_year=int(row["release_year"]),
        source=row["source"],
        notes=row["notes"],
    )


def _compute_capability(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    major, minor = text.split(".")
    return int(major), int(minor)


def _flops(tflops: str) -> float | None:
    return float(tflops) * 1e12 if tflops else None
