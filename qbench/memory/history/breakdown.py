"""What the bytes are: the live set at the peak by category, phase peaks and a timeline, from a ledger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qbench.memory.history.events import Ints, Outline, bytes_asked, event_bytes, outline_of
from qbench.memory.history.ledger import History
from qbench.records.metrics import BREAKDOWN, OF_SEVERAL_GPUS
from qbench.records.parts import PeakAt

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
    peak_at: PeakAt
    """Phase, operator and module of the allocation that made the peak."""
    phases: dict[str, int]
    """Largest live bytes within each phase."""
    timeline: list[list[int]]
    """[event, live bytes] of the last step, thinned by keeping the largest of each window."""


def profile(ledger: History) -> MemoryProfile:
    """Return what the ledger saw, each storage rounded up to 512 B."""
    outline = outline_of(ledger)
    return profile_of(outline, event_bytes(outline, bytes_asked(ledger)))


def profile_of(outline: Outline, sizes: Ints) -> MemoryProfile:
    """Return the memory of events of these bytes; set-up ends where the first forward pass begins.

    The peak is that of steps and of loading, where the history knows of loading. `sizes` may be those of
    storages, or of the blocks that an allocator gave them; negative on a free.
    """
    live = np.cumsum(sizes)
    blocks = np.zeros(len(outline.made), dtype=np.int64)
    blocks[outline.handles[~outline.is_free]] = sizes[~outline.is_free]
    peak = int(np.argmax(live))
    phase, op, module, *_ = outline.made[outline.handles[peak]]
    first = next(event for event, begun in outline.marks if begun == "forward")
    static = _by_category(outline, blocks, outline.alive_at(first))
    return MemoryProfile(
        static_bytes=sum(static.values()),
        static_breakdown=static,
        peak_bytes=int(live[peak]),
        breakdown=_by_category(outline, blocks, outline.alive_at(peak + 1)),
        peak_at={"phase": phase, "op": op, "module": module},
        phases=_phase_peaks(outline, live),
        timeline=_timeline(outline, live),
    )


def categories(ledger: History) -> list[str]:
    """Return the category of each allocation, by its handle."""
    return [BREAKDOWN[number] for number in outline_of(ledger).category_of]


def _by_category(outline: Outline, blocks: Ints, alive: NDArray[np.bool_]) -> dict[str, int]:
    # Sums of floats would round from 8 PiB on; those of a bincount are floats.
    totals = np.zeros(len(BREAKDOWN), dtype=np.int64)
    np.add.at(totals, outline.category_of[alive], blocks[alive])
    several = any(name in OF_SEVERAL_GPUS for name in outline.declared[0])
    found = dict(zip(BREAKDOWN, totals.tolist(), strict=True))
    return {name: each for name, each in found.items() if several or name not in OF_SEVERAL_GPUS}


def _phase_peaks(outline: Outline, live: Ints) -> dict[str, int]:
    names, phase_of = outline.phases
    made = ~outline.is_free
    peaks = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(peaks, phase_of[outline.handles[made]], live[made])
    # What was there before anything was watched has no phase of its own.
    return {name: peak for name, peak in zip(names, peaks.tolist(), strict=True) if name != "build"}


def _timeline(outline: Outline, live: Ints) -> list[list[int]]:
    """Return the last step, thinned to the largest value in each of a few hundred equal windows."""
    start = max(event for event, phase in outline.marks if phase == "forward")
    values = live[start:]
    width = max(1, -(-len(values) // TIMELINE_POINTS))
    firsts = np.arange(0, len(values), width)
    largest = np.maximum.reduceat(values, firsts).tolist() if len(values) else []
    return [[first, value] for first, value in zip(firsts.tolist(), largest, strict=True)]
