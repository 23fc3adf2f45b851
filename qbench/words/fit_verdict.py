"""The verdict of a fit in words: as a line, a cell, a heading, and why (`planner.fit_verdict` decides it)."""

from __future__ import annotations

from qbench.records.fits import Fit
from qbench.records.parts import FitShortage, FitVerdict
from qbench.units import GIB, NOT_AVAILABLE, format_bytes, format_seconds

_HEADINGS: dict[FitVerdict, str] = {
    "fits": "Fits",
    "tight": "Tight",
    "does not fit": "Does not fit",
    "unknown": "Cannot be judged",
}

RETRIED_NOTE = (
    "* Fits only after PyTorch empties its cache, which takes time in every step: nothing is left to spare."
)


def verdict_text(fit: Fit) -> str:
    """Return whether a card holds a plan and why: 'fits', 'does not fit (out of memory in load: ...)'."""
    reason = reason_text(fit)
    return f"{fit.verdict} ({reason})" if reason else fit.verdict


def reason_text(fit: Fit) -> str:
    """Return why a fit is tight, fails or cannot be judged; empty where nothing more is known."""
    retries = fit.num_alloc_retries
    if fit.unmodelled:
        return f"not in the plan, and they affect memory: {', '.join(fit.unmodelled)}"
    if fit.verdict == "unknown":
        return fit.error or ""
    if retries:
        return f"after {retries:,} allocator {'retry' if retries == 1 else 'retries'}"
    if fit.verdict == "tight":
        least, most = fit.context_bytes or (0, 0)
        context = "if the CUDA context is smaller than the largest reported"
        needs_cache = fit.headroom_bytes is not None and fit.headroom_bytes < least - most
        return f"only {context}{' and the allocator empties its cache' if needs_cache else ''}"
    return "" if fit.shortage is None else _shortage_text(fit.shortage)


def _shortage_text(shortage: FitShortage) -> str:
    what = " of ".join(filter(None, (shortage["op"] or "a tensor", shortage["module"])))
    requested, free = format_bytes(shortage["requested_bytes"]), format_bytes(shortage["free_bytes"])
    return f"out of memory in {shortage['phase']}: {what} requests {requested}, {free} free"


def verdict_line(fit: Fit, peak_bytes: float | None) -> str:
    """Return the verdict with the memory left or missing, the reason, and the speed and price of the card.

    The card's own peak is named where it is not `peak_bytes`.
    """
    if fit.verdict == "unknown":
        return f"unknown ({reason_text(fit)})" if fit.unmodelled else "has no kernel for this"
    room, reason = fit.headroom_bytes, reason_text(fit)
    said: str = "fits" if fit.fits else fit.verdict
    if fit.fits and fit.num_alloc_retries:
        said += " only after the allocator has emptied its cache, which takes time in every step"
    elif room is not None and fit.fits:
        said += f", {format_bytes(room)} left"
    elif room is not None and room < 0:
        # With no limit, that is: an allocation fails before, for less. It may also fail in fragments.
        said += f", would reserve {format_bytes(-room)} more than it has"
    if reason and not fit.fits:
        said += f" ({reason})"
    if fit.peak_allocated_bytes not in (None, peak_bytes):
        said += f"; peak allocated {format_bytes(fit.peak_allocated_bytes)}"
    if fit.fits and fit.step_time_s is not None:
        said += f"; {format_seconds(fit.step_time_s)} a step"
    priced = fit.fits and fit.usd_per_hour is not None
    return f"{said}; from ${fit.usd_per_hour:.2f}/h" if priced else said


def heading(fit: Fit) -> str:
    """Return the verdict as a page sets it large: 'Does not fit on RTX 4090'."""
    return f"{_HEADINGS[fit.verdict]} on {fit.gpu}"


def memory_sentence(fit: Fit, device_bytes: int | None) -> str:
    """Return what stands behind `heading`: '3.00 GiB left of 23.52 GiB, 20.52 GiB needed.'."""
    room = fit.headroom_bytes
    left = "" if room is None else f"{left_text(room)} of {format_bytes(fit.memory_bytes)}, "
    # What a card forces the allocator to give back is more than the card has, where it has no limit.
    return f"{left}{format_bytes(device_bytes)} needed{' without a limit' if reason_text(fit) else ''}."


def room_text(fit: Fit | None) -> str:
    """Return what is left on a card, or what it lacks, as a cell: '3.00 GiB left', 'no, 1.00 GiB short'."""
    if fit is None:
        return "cannot be planned"
    if fit.headroom_bytes is None:
        return "no kernel"
    return f"{'' if fit.fits else 'no, '}{left_text(fit.headroom_bytes)}"


def left_text(headroom_bytes: int) -> str:
    """Return '3.00 GiB left', or '1.00 GiB short' where the headroom is negative."""
    size = format_bytes(abs(headroom_bytes))
    return f"{size} {'short' if headroom_bytes < 0 else 'left'}"


def room_in_gib(fit: Fit | None) -> str:
    """Return what is left on a card in GiB, as a cell below that unit: '3.00 left', 'tight', '1.00 short'."""
    if fit is None:
        return NOT_AVAILABLE
    if fit.headroom_bytes is None:
        return "no kernel"
    room = fit.headroom_bytes / GIB
    if not fit.fits:
        return f"{-room:.2f} short" if fit.verdict == "does not fit" else f"tight, {-room:.2f} short"
    # What is left once the allocator has emptied its cache is no room to spare.
    return "tight" if fit.num_alloc_retries else f"{room:.2f} left"


def room_number(fit: Fit | None) -> str:
    """Return the GiB left as the number in a map's cell; a yes or no where the plan says no more."""
    if fit is None:
        return ""
    room = fit.headroom_bytes
    if room is None:
        return "fits" if fit.fits else "no"
    # A plan can fail with room to spare, in fragments or while loading.
    if not fit.fits and room >= 0:
        return "no"
    return f"{room / GIB:.1f}" if abs(room) < 100 * GIB else f"{room / GIB:.0f}"
