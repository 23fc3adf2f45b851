"""What CUDA takes beside the tensors, library workspaces and the context, and whether a card holds a plan."""

from __future__ import annotations

from dataclasses import dataclass

from qbench.catalog.gpus import GpuSpec
from qbench.memory.allocator.caching import AllocatorConfig, ReplayResult, replay
from qbench.memory.history.ledger import History
from qbench.memory.kernels.choices import Capability, Card
from qbench.units import MIB, format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSize:
    """Least and most bytes that a CUDA context was reported to take outside the allocator, and by whom."""

    least: int
    most: int
    source: str


_ANY_CARD = ContextSize(
    least=287_000_000,
    most=400_000_000,
    source="pytorch/pytorch pull request 86509 (287 MB, lazy loading), issues 107667 and 109888 (300 to 400)",
)
_BY_CAPABILITY: dict[Capability, ContextSize] = {
    (8, 6): ContextSize(
        least=256 * MIB,
        most=400_000_000,
        source="invoke-ai/InvokeAI issue 9413 (RTX 3090, torch 2.7: 256 MiB bare); "
        "pytorch/pytorch issues 107667 and 109888 (300 to 400 MB)",
    ),
}
_FROM_HOPPER_ON = ContextSize(
    least=287_000_000,
    most=550_000_000,
    source="pytorch/pytorch pull request 86509 (287 MB, lazy loading); ggml-org/llama.cpp pull request 20595 "
    "(up to 550 MB, by GPU)",
)


def context_size(capability: Capability) -> ContextSize:
    """Return what is known of the CUDA context on cards of a compute capability.

    It grows with the card and with the kernels that were loaded; no vendor publishes it. The largest figure
    that was found belongs to no named GPU, so it is the upper end for the largest ones.
    """
    if capability >= (9, 0):
        return _FROM_HOPPER_ON
    return _BY_CAPABILITY.get(capability, _ANY_CARD)


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
