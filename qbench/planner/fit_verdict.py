"""Whether a card holds a plan: the verdict of a fit is decided here (`words.fit_verdict` words it)."""

from __future__ import annotations

from dataclasses import replace

from qbench.catalog.capabilities import ContextSize, context_size
from qbench.catalog.gpus import GpuSpec
from qbench.errors import StepError
from qbench.memory.allocator.caching import AllocatorConfig, ReplayResult, replay
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
    context = context_size(card_of(gpu).capability)
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
    # How much is short says nothing of it: a cache that need not be released may serve what comes later.
    may_fit = reserved_bytes <= most or replay(history.events, config, most, emptied).fits != "oom"
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
