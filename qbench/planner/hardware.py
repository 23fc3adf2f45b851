"""What CUDA takes beside the tensors, library workspaces and the context, and whether a card holds a plan."""

from __future__ import annotations

from dataclasses import dataclass

from qbench.catalog.gpus import GpuSpec
from qbench.memory.allocator.caching import AllocatorConfig, ReplayResult, replay
from qbench.memory.history.ledger import History
from qbench.memory.kernels.choices import Card
from qbench.units import format_bytes


def library_buffers(card: Card) -> dict[str, int]:
    """Return the bytes of cuBLAS workspaces by the phase whose first matrix product takes each.

    Forward runs on the caller's thread and backward on autograd's, and each thread has a cuBLAS handle.
    """
    return dict.fromkeys(("forward", "backward"), card.workspace_bytes)


def card_of(gpu: GpuSpec | None) -> Card:
    """Return what of a GPU decides between kernels; Ampere where none is named, or one without CUDA."""
    if gpu is None or gpu.compute_capability is None:
        return Card()
    return Card(capability=gpu.compute_capability)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a card holds a plan, and how."""

    fits: bool
    verdict: str
    """ok, ok after so many allocator retries, or where an allocation fails."""
    headroom_bytes: int | None
    """Left on the card at the peak, context included; negative by what the plan takes beyond the card. None
    where it has no kernels for the step."""
    num_alloc_retries: int | None
    """Allocations that succeed only once the allocator has released its cache; None when it fails."""


def fit_on(
    gpu: GpuSpec, history: History, reserved_bytes: int, context_bytes: int, config: AllocatorConfig
) -> Fit:
    """Return how a history goes on a card, `reserved_bytes` being what it reserves where nothing is short.

    The allocator releases its cache before it gives up, so that a card may hold a step whose reserve would
    be larger than the card: only then the history is replayed with what the context leaves as the limit.
    """
    limit = max(0, gpu.memory_bytes - context_bytes)
    if reserved_bytes <= limit:
        return Fit(fits=True, verdict="ok", headroom_bytes=limit - reserved_bytes, num_alloc_retries=0)
    pressed = replay(history.events, config, limit)
    if pressed.fits == "oom":
        return Fit(
            fits=False,
            verdict=_oom_text(pressed, history),
            headroom_bytes=gpu.memory_bytes - context_bytes - reserved_bytes,
            num_alloc_retries=None,
        )
    retries = pressed.stats.num_alloc_retries
    return Fit(
        fits=True,
        verdict=f"ok after allocator retries ({retries})" if retries else "ok",
        headroom_bytes=limit - pressed.stats.peak_reserved_bytes,
        num_alloc_retries=retries,
    )


def _oom_text(pressed: ReplayResult, history: History) -> str:
    assert pressed.oom_at_event is not None
    assert pressed.oom_requested_bytes is not None
    assert pressed.oom_free_bytes is not None
    wanted = history.allocations[history.events[pressed.oom_at_event][0]]
    asked, free = format_bytes(pressed.oom_requested_bytes), format_bytes(pressed.oom_free_bytes)
    place = f" of {wanted.module}" if wanted.module else ""
    op = wanted.op or "a tensor"
    return f"oom in {wanted.phase}: {op}{place} asks for {asked}, {free} free"
