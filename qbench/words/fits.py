"""How a card holds a plan, in words."""

from __future__ import annotations

from qbench.records.fits import Fit
from qbench.records.parts import FitShortage
from qbench.units import format_bytes


def fit_text(fit: Fit) -> str:
    """Return whether a card holds a plan and why: 'fits', 'does not fit (out of memory in load: ...)'."""
    reason = reason_text(fit)
    return f"{fit.verdict} ({reason})" if reason else fit.verdict


def reason_text(fit: Fit) -> str:
    """Return why a fit is tight, fails or cannot be judged; empty where nothing more is known."""
    retries = fit.num_alloc_retries
    if fit.verdict == "unknown":
        return fit.error or ""
    if retries:
        return f"after {retries:,} allocator {'retry' if retries == 1 else 'retries'}"
    if fit.verdict == "tight":
        return "only if the CUDA context is smaller than the largest reported"
    return "" if fit.shortage is None else shortage_text(fit.shortage)


def shortage_text(shortage: FitShortage) -> str:
    """Return which allocation fails: 'out of memory in load: aten.mm requests 2.00 GiB, 1.00 GiB free'."""
    what = " of ".join(filter(None, (shortage["op"] or "a tensor", shortage["module"])))
    requested, free = format_bytes(shortage["requested_bytes"]), format_bytes(shortage["free_bytes"])
    return f"out of memory in {shortage['phase']}: {what} requests {requested}, {free} free"
