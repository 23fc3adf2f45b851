"""Whether a card holds a planned step, and the numbers behind that; `Record.fits` has one for each card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import cast

from qbench.records.parts import FitShortage, FitValues, FitVerdict, TimeParts
from qbench.scenario.importers.keys import Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a card holds a planned step, and how. Unknown values are None; sizes are bytes, times seconds.

    `planner.fit_verdict` decides it: the step's allocations are replayed through a model of PyTorch's caching
    allocator, with the card's memory less its CUDA context as the limit.
    """

    gpu: str
    """Name of the card in the catalog, as `qbench gpus` lists it."""
    fits: bool
    """Whether the card holds the step, even with the largest CUDA context reported for such a card."""
    verdict: FitVerdict
    """`fits`; `tight`: only after the allocator has emptied its cache, or only if the context is smaller than
    the largest reported; `does not fit`; `unknown`: the step cannot be planned for the card (`error`)."""
    memory_bytes: int | None = None
    """Memory of the card that a program sees, in bytes (torch's `total_memory`)."""
    headroom_bytes: int | None = None
    """Memory less the largest context and the peak reserved, in bytes; negative where the card is short."""
    num_alloc_retries: int | None = None
    """How often the allocator empties its cache to serve an allocation (`torch.cuda.memory_stats`)."""
    context_bytes: list[int] | None = None
    """Smallest and largest CUDA context reported for such a card, in bytes."""
    shortage: FitShortage | None = None
    """The allocation that fails: phase, operator, module, bytes requested and bytes free."""
    error: str | None = None
    """Why the step cannot run on the card."""
    peak_allocated_bytes: int | None = None
    """Largest sum of live tensors with the card's own kernels, in bytes, were its memory unlimited."""
    peak_reserved_bytes: int | None = None
    """Largest memory held by the allocator with these kernels, in bytes, were the memory unlimited."""
    unmodelled: list[str] | None = None
    """Settings that leave the verdict unknown: they affect memory and are not in the plan."""
    usd_per_hour: float | None = None
    """Cheapest price of one card on demand in the catalog, in USD an hour."""
    price_from: str | None = None
    """Cloud that asks this price, and the date of the price list."""
    step_time_s: float | None = None
    """Planned seconds of one optimizer step, also where the card does not hold it."""
    tokens_per_s: float | None = None
    """Tokens of a step over `step_time_s`."""
    cost_usd_per_mtok: float | None = None
    """Price of training on a million tokens at `usd_per_hour`, in USD."""
    time: TimeParts | None = None
    """Seconds by part of the step, what bounds it (compute, memory, host), and where the rates are from."""

    def to_values(self) -> FitValues:
        """Return the fit as plain JSON values."""
        return cast(FitValues, {name: getattr(self, name) for name in _NAMES})


_NAMES = tuple(field.name for field in fields(Fit))


def with_unmodelled(fit: Fit, effects: Mapping[str, Effect]) -> Fit:
    """Return a fit that claims no more than was planned: settings left out may turn its verdict over.

    What needs more memory cannot make a step fit, and what needs less cannot make it fail.
    """
    harmless = "more" if fit.verdict == "does not fit" else "less"
    turning = sorted(key for key, effect in effects.items() if effect != harmless)
    if not turning or fit.verdict == "unknown":
        return fit
    return replace(fit, fits=False, verdict="unknown", unmodelled=turning)


def fits_of(rows: Iterable[FitValues] | None) -> tuple[Fit, ...]:
    """Return the fits that the rows of a record describe; none where there are no rows."""
    return tuple(map(_fit, rows or ()))


def _fit(row: FitValues) -> Fit:
    known = {name: row[name] for name in _NAMES if name in row}  # type: ignore[literal-required]
    return Fit(**{"verdict": "fits" if row["fits"] else "does not fit"} | known)
