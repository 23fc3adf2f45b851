"""What the bytes are: the live set at the peak by category, phase peaks and a timeline, from a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qbench.memory.ledger import Allocation, History
from qbench.records.metrics import BREAKDOWN

TIMELINE_POINTS = 400
"""A step has some ten thousand allocations; a chart needs no more points than pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProfile:
    """The memory of some steps, in bytes, by the sizes of the events it was made from."""

    static_bytes: int
    static_breakdown: dict[str, int]
    peak_bytes: int
    breakdown: dict[str, int]
    """Live bytes at the peak by category; they sum to `peak_bytes`."""
    peak_at: dict[str, str]
    """Phase, operator and module of the allocation that made the peak."""
    phases: dict[str, int]
    """Largest live bytes within each phase."""
    timeline: list[list[int]]
    """[event, live bytes] of the last step, thinned by keeping the largest of each window."""


Events = Sequence[tuple[int, int]]


def profile(ledger: History, events: Events | None = None) -> MemoryProfile:
    """Return what the ledger saw; the first forward pass is where set-up ends and steps begin.

    The peak is that of steps and of loading, where the ledger knows of loading. `events` are the ledger's
    own, each storage rounded up to 512 B, or the same ones with the block sizes
    of an allocator.
    """
    events = ledger.events if events is None else events
    first_event = next(event for event, phase in ledger.marks if phase == "forward")
    peak_event, peak_bytes = _peak(events)
    culprit = ledger.allocations[events[peak_event][0]]
    static = _live_at(events, first_event)
    saved = _saved_for_backward(ledger)
    return MemoryProfile(
        static_bytes=sum(static.values()),
        static_breakdown=_by_category(ledger, static, set()),
        peak_bytes=peak_bytes,
        breakdown=_by_category(ledger, _live_at(events, peak_event + 1), saved),
        peak_at={"phase": culprit.phase, "op": culprit.op, "module": culprit.module},
        phases=_phase_peaks(ledger, events),
        timeline=_timeline(ledger, events),
    )


def _peak(events: Events) -> tuple[int, int]:
    """Return (event, bytes) of the first largest sum."""
    live = best_event = best = 0
    for event, (_, size) in enumerate(events):
        live += size
        if live > best:
            best_event, best = event, live
    return best_event, best


def _live_at(events: Events, num_events: int) -> dict[int, int]:
    """Return {handle: bytes} of what is alive after so many events."""
    live: dict[int, int] = {}
    for handle, size in events[:num_events]:
        if size > 0:
            live[handle] = size
        else:
            del live[handle]
    return live


def _saved_for_backward(ledger: History) -> set[int]:
    """Return the handles that a forward pass made and that were alive when its backward began."""
    backward_starts = iter([event for event, phase in ledger.marks if phase == "backward"])
    saved: set[int] = set()
    live: set[int] = set()
    start = next(backward_starts, None)
    for event, (handle, size) in enumerate(ledger.events):
        if event == start:
            saved |= live
            start = next(backward_starts, None)
        if size > 0:
            live.add(handle)
        else:
            live.discard(handle)
    return {handle for handle in saved if ledger.allocations[handle].in_forward}


def categories(ledger: History) -> list[str]:
    """Return the category of each allocation, by its handle."""
    saved = _saved_for_backward(ledger)
    return [_category(allocation, handle in saved) for handle, allocation in enumerate(ledger.allocations)]


def _category(allocation: Allocation, saved: bool) -> str:
    if allocation.category:
        return allocation.category
    # A recomputed tensor is an activation while its layer's backward runs.
    if saved or (allocation.in_forward and allocation.phase == "backward"):
        return "activations"
    return "temporaries"


def _by_category(ledger: History, live: dict[int, int], saved: set[int]) -> dict[str, int]:
    totals = dict.fromkeys(BREAKDOWN, 0)
    for handle, size in live.items():
        totals[_category(ledger.allocations[handle], handle in saved)] += size
    return totals


def _phase_peaks(ledger: History, events: Events) -> dict[str, int]:
    peaks: dict[str, int] = {}
    live = 0
    for handle, size in events:
        live += size
        if size > 0:
            phase = ledger.allocations[handle].phase
            peaks[phase] = max(peaks.get(phase, 0), live)
    # What was there before anything was watched has no phase of its own.
    peaks.pop("build", None)
    return peaks


def _timeline(ledger: History, events: Events) -> list[list[int]]:
    """Return the last step, thinned to the largest value in each of a few hundred equal windows."""
    start = max(event for event, phase in ledger.marks if phase == "forward")
    live = sum(size for _, size in events[:start])
    values: list[int] = []
    for _, size in events[start:]:
        live += size
        values.append(live)
    width = max(1, -(-len(values) // TIMELINE_POINTS))
    return [[first, max(values[first : first + width])] for first in range(0, len(values), width)]
