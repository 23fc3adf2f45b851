"""Whether a card holds a plan: the verdict of a fit is decided here (`words.fit_verdict` words it)."""

from __future__ import annotations

from dataclasses import replace

from qbench.catalog.capabilities import ContextSize, context_size
from qbench.catalog.gpus import GpuSpec
from qbench.errors import StepError
from qbench.memory.allocator.caching import replay
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.allocator.fast_replay import Pressed, pressed_replay
from qbench.memory.history.events import Outline, SizedHistory, bytes_asked, event_bytes, outline_of
from qbench.memory.history.ledger import History, emptied_at
from qbench.planner.hardware import card_of
from qbench.planner.trace import Trace
from qbench.records.fits import Fit
from qbench.records.parts import FitShortage


def fit_of(
    gpu: GpuSpec, traced: Trace | StepError, config: AllocatorConfig, *, finds_shortage: bool = True
) -> Fit:
    """Return whether a card holds a step that was traced with its kernels; a StepError is why it was not.

    Without `finds_shortage` no allocator is asked about a step whose tensors alone exceed the card.
    """
    if isinstance(traced, StepError):
        return Fit(
            gpu=gpu.name, fits=False, verdict="unknown", memory_bytes=gpu.memory_bytes, error=str(traced)
        )
    assert traced.reserved_bytes is not None
    context = context_size(card_of(gpu).capability, traced.num_gpus)
    if not finds_shortage and traced.memory.peak_bytes > gpu.memory_bytes - context.least:
        return Fit(gpu=gpu.name, fits=False, verdict="does not fit", memory_bytes=gpu.memory_bytes)
    return replace(
        fit_on(gpu, traced.ledger, traced.reserved_bytes, context, config),
        peak_allocated_bytes=traced.memory.peak_bytes,
        peak_reserved_bytes=traced.reserved_bytes,
    )


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
    pressed = _pressed(history, config, limit)
    if pressed.oom_at_event is None:
        return replace(
            of_card,
            verdict="tight" if pressed.num_alloc_retries else "fits",
            headroom_bytes=limit - pressed.peak_reserved_bytes,
            num_alloc_retries=pressed.num_alloc_retries,
        )
    shortage = _shortage(history, pressed.oom_at_event, pressed)
    most = max(0, gpu.memory_bytes - context.least)
    # How much is short says nothing of it: a cache that need not be released may serve what comes later.
    may_fit = reserved_bytes <= most or _pressed(history, config, most).oom_at_event is None
    return replace(
        of_card,
        fits=False,
        verdict="tight" if may_fit else "does not fit",
        headroom_bytes=gpu.memory_bytes - context.most - reserved_bytes,
        num_alloc_retries=None,
        shortage=shortage,
    )


def _pressed(history: History, config: AllocatorConfig, limit: int) -> Pressed:
    """Return how a history goes on a card of so many bytes."""
    if config == AllocatorConfig():
        outline = _outline(history)
        asked = history.asked if isinstance(history, SizedHistory) else bytes_asked(history)
        return pressed_replay(outline, event_bytes(outline, asked), limit)
    streams = _outline(history).streams
    found = replay(history.events, config, limit, emptied_at(history.marks), streams)
    return Pressed(
        peak_reserved_bytes=found.stats.peak_reserved_bytes,
        num_alloc_retries=found.stats.num_alloc_retries,
        oom_at_event=found.oom_at_event,
        oom_requested_bytes=found.oom_requested_bytes or 0,
        oom_free_bytes=found.oom_free_bytes or 0,
    )


def _outline(history: History) -> Outline:
    return history.outline if isinstance(history, SizedHistory) else outline_of(history)


def _shortage(history: History, event: int, pressed: Pressed) -> FitShortage:
    outline = _outline(history)
    phase, op, module, *_ = outline.made[outline.handles[event]]
    return {
        "phase": phase,
        "op": op,
        "module": module,
        "requested_bytes": pressed.oom_requested_bytes,
        "free_bytes": pressed.oom_free_bytes,
    }
