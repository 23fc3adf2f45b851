"""A card that a plan was held against: whether it holds the step, and the numbers behind that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import cast

from qbench.records.parts import FitShortage, FitValues, FitVerdict, TimeParts


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Whether a card holds a plan, and how. What is unknown is None."""

    gpu: str
    """Name of the card."""
    fits: bool
    """Whether it holds the step with the largest context that was reported for such a card."""
    verdict: FitVerdict
    """`fits`; `tight`: only after the allocator has emptied its cache, or only if the context is smaller than
    the largest reported; `does not fit`; `unknown`: the card has no kernels for the step (`error`)."""
    memory_bytes: int | None = None
    """Memory of the card."""
    headroom_bytes: int | None = None
    """Left on the card at the peak beside its largest context; negative by what the plan takes beyond it."""
    num_alloc_retries: int | None = None
    """Allocations that succeed only once the allocator has emptied its cache."""
    context_bytes: list[int] | None = None
    """Least and most that a CUDA context was reported to take on such a card."""
    shortage: FitShortage | None = None
    """The allocation that fails where the card does not hold the step."""
    error: str | None = None
    """Why the step cannot run on the card."""
    peak_allocated_bytes: int | None = None
    """Of the step with the card's own kernels, where it has no limit."""
    peak_reserved_bytes: int | None = None
    """Of the step with the card's own kernels, where it has no limit."""
    usd_per_hour: float | None = None
    """Cheapest price on demand."""
    price_from: str | None = None
    """Cloud and date of the price."""
    step_time_s: float | None = None
    """Seconds of a step, memory aside."""
    tokens_per_s: float | None = None
    """Tokens trained on in a second, memory aside."""
    cost_usd_per_mtok: float | None = None
    """Price of training on a million tokens."""
    time: TimeParts | None = None
    """Where the time of a step goes."""

    def to_values(self) -> FitValues:
        """Return the fit as plain JSON values."""
        return cast(FitValues, {name: getattr(self, name) for name in _NAMES})


_NAMES = tuple(field.name for field in fields(Fit))


def fits_of(rows: Iterable[FitValues] | None) -> tuple[Fit, ...]:
    """Return the fits that the rows of a record describe; none where there are no rows."""
    return tuple(map(_fit, rows or ()))


def _fit(row: FitValues) -> Fit:
    known = {name: row[name] for name in _NAMES if name in row}  # type: ignore[literal-required]
    return Fit(**{"verdict": "fits" if row["fits"] else "does not fit"} | known)
