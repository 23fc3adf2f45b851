"""What CUDA takes beside the tensors, library workspaces and the context, and whether a card holds a plan."""

from __future__ import annotations

from dataclasses import replace

from qbench.catalog.capabilities import ContextSize
from qbench.catalog.gpus import GpuSpec
from qbench.memory.allocator.caching import AllocatorConfig, ReplayResult, replay
from qbench.memory.history.ledger import History, emptied_at
from qbench.memory.kernels.choices import Card
from qbench.records.fits import Fit
from qbench.records.parts import FitShortage


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


def fit_on(
    gpu: GpuSpec, history: History, reserved_bytes: int, context: ContextSize, config: AllocatorConfig
) -> Fit:
    """Return how a history goes on a card, `reserved_bytes` being what it reserves where nothing is short.

    The allocator releases its cache before it gives up, so that a card may hold a step whose reserve would
    be larger than the card: only then the history is replayed with what the context leaves as the limit.
    """
    limit = max(0, gpu.memory_bytes - context.most)
    of_card = Fit(
        gpu=gpu.name,
        fits=True,
        verdict="fits",
        memory_bytes=gpu.memory_bytes,
        context_bytes=[context.least, context.most],
        headroom_bytes=limit - reserved_bytes,
        num_alloc_retries=0,
    )
    if reserved_bytes <= limit:
        return of_card
    emptied = emptied_at(history.marks)
    pressed = replay(history.events, config, limit, emptied)
    if pressed.fits != "oom":
        retries = pressed.stats.num_alloc_retries
        return replace(
            of_card,
            verdict="tight" if retries else "fits",
            headroom_bytes=limit - pressed.stats.peak_reserved_bytes,
            num_alloc_retries=retries,
        )
    shortage = _shortage(pressed, history)
    most = max(0, gpu.memory_bytes - context.least)
    # What is short of more than the least context leaves besides would be short of it there, too.
    may_fit = shortage["requested_bytes"] - shortage["free_bytes"] <= most - limit and (
        reserved_bytes <= most or replay(history.events, config, most, emptied).fits != "oom"
    )
    return replace(
        of_card,
        fits=False,
        verdict="tight" if may_fit else "does not fit",
        headroom_bytes=gpu.memory_bytes - context.most - reserved_bytes,
        num_alloc_retries=None,
        shortage=shortage,
    )


def _shortage(pressed: ReplayResult, history: History) -> FitShortage:
    assert pressed.oom_at_event is not None
    assert pressed.oom_requested_bytes is not None
    assert pressed.oom_free_bytes is not None
    wanted = history.allocations[history.events[pressed.oom_at_event][0]]
    return {
        "phase": wanted.phase,
        "op": wanted.op,
        "module": wanted.module,
        "requested_bytes": pressed.oom_requested_bytes,
        "free_bytes": pressed.oom_free_bytes,
    }
