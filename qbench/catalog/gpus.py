"""GPUs: memory that a program can use, bandwidth and peak arithmetic, each with its source."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qbench.catalog.names import NameIndex, nearest_text
from qbench.catalog.rows import catalog_rows, compute_capability, listed, optional
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
    multiprocessors: int | None = None
    """Streaming multiprocessors, as torch's multi_processor_count; None for AMD."""
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
    link: str = "PCIe"
    """What joins the GPUs of a node: PCIe, NVLink, or Infinity Fabric; bridges of two cards do not count."""
    link_bytes_per_s: float | None = None
    """Peak of one GPU's link in one direction; None where no node has several."""
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
    return catalog_rows(
        "gpus.csv",
        _spec,
        aliases=listed,
        compute_capability=optional(compute_capability),
        multiprocessors=optional(int),
        nominal_gb=int,
        memory_gib=float,
        bandwidth_gb_per_s=float,
        link_gb_per_s=optional(float),
        tdp_w=float,
        release_year=int,
        **{f"{dtype}_tflops": optional(float) for dtype in DTYPES},
    )


def find_gpu(name: str) -> GpuSpec:
    """Return the GPU of that name or alias.

    Case, separators and brands are ignored (4090 is the RTX 4090), and so is the memory where a card has one
    size only. Raises CatalogError with the nearest names when there is none, with the candidates when several
    cards are meant, and with the cards of that size for a name such as 24GB.
    """
    spec = _index().find(name) or _index().find(_without_vendor(name))
    if spec is not None:
        return spec
    candidates = _by_plain_name().get(_plain(name), ())
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise CatalogError(f"GPU {name!r} could be {_listed(candidates)}; give one of these names")
    if size := re.fullmatch(r"\s*(\d+)\s*gi?b?\s*", name, flags=re.IGNORECASE):
        gigabytes = int(size.group(1))
        cards = _listed([spec for spec in gpus() if spec.nominal_gb == gigabytes]) or "none in the catalog"
        raise CatalogError(
            f"GPU {name!r} is a memory size; cards with {gigabytes} GB: {cards}; name one, or describe it "
            f"with --gpu-memory {gigabytes}GiB and --compute-capability"
        )
    if several := re.fullmatch(r"\s*(\d+)\s*x\s*(.+)", name, flags=re.IGNORECASE):
        raise CatalogError(
            f"GPU {name!r}: name one card ({several[2]}); for several that train together add "
            f"--gpus {several[1]} --strategy fsdp2 or ddp"
        )
    near = nearest_text(_index().nearest(_without_vendor(name)))
    raise CatalogError(f"GPU {name!r} is not in the catalog{near}; give a name that `qbench gpus` lists")


def other_variants(name: str) -> tuple[GpuSpec, ...]:
    """Return the GPUs that a short name such as A100 could mean beside the one that `find_gpu` gives."""
    found = find_gpu(name)
    words = _words(name)
    if words == _words(found.name):
        return ()
    return tuple(spec for spec in gpus() if spec != found and _words(spec.name)[: len(words)] == words)


def _listed(cards: Iterable[GpuSpec]) -> str:
    return ", ".join(card.name for card in cards)


def _without_vendor(name: str) -> str:
    return re.sub(r"^(nvidia|amd)\s+", "", name, flags=re.IGNORECASE)


def _words(name: str) -> list[str]:
    """Return the words of a name without brands and units: 4060, ti, 16 of GeForce RTX 4060 Ti 16GB."""
    text = re.sub(r"nvidia|amd|geforce|instinct|radeon|tesla|quadro|rtx|\brx\b|\bgpu\b", " ", name.casefold())
    return re.findall(r"[a-z0-9]+", re.sub(r"(\d)gi?b\b", r"\1", text))


def _plain(name: str) -> str:
    return "".join(_words(name))


@functools.cache
def _index() -> NameIndex[GpuSpec]:
    return NameIndex((spec, (spec.name, *spec.aliases)) for spec in gpus())


@functools.cache
def _by_plain_name() -> dict[str, tuple[GpuSpec, ...]]:
    """Return the GPUs by their plain names; a name without its memory counts where no card is called so."""
    found: dict[str, dict[GpuSpec, None]] = {}
    for spec in gpus():
        for name in (spec.name, *spec.aliases):
            found.setdefault(_plain(name), {})[spec] = None
    shorter: dict[str, dict[GpuSpec, None]] = {}
    for spec in gpus():
        shorter.setdefault(_plain(re.sub(r"[ -]\d+GB\b", "", spec.name)), {})[spec] = None
    return {name: tuple(cards) for name, cards in (shorter | found).items()}


def _spec(memory_gib: float, bandwidth_gb_per_s: float, link_gb_per_s: float | None, **known: Any) -> GpuSpec:
    tflops = {dtype: known.pop(f"{dtype}_tflops") for dtype in DTYPES}
    return GpuSpec(
        memory_bytes=int(memory_gib * GIB),
        memory_bandwidth_bytes_per_s=bandwidth_gb_per_s * 1e9,
        link_bytes_per_s=None if link_gb_per_s is None else link_gb_per_s * 1e9,
        peak_flops={dtype: None if peak is None else peak * 1e12 for dtype, peak in tflops.items()},
        **known,
    )
