"""Why a value is the same, better or worse than its baseline, in words."""

from __future__ import annotations

import math

from qbench.comparison.intervals import LEAST_PROCESSES, LogRatio
from qbench.comparison.sequential import FIRST_LOOK
from qbench.comparison.verdicts import Failed, Measured, Reason, Unlike, Wanted, Why

_WHY: dict[Why, str] = {
    "processes disagree": "the processes differ by more than the tolerance",
    "few processes": (
        f"noise cannot be estimated from fewer than {LEAST_PROCESSES} processes per side; "
        f"measure {LEAST_PROCESSES} or more"
    ),
    "few pairs": f"noise cannot be estimated from fewer than {FIRST_LOOK} pairs of processes",
    "between looks": "no decision is made at this number of pairs",
    "not positive": "a value is not above 0, so there is no ratio; measure again",
    "not valid": "measured, but not valid; see the report",
    "no valid baseline": "the baseline has no valid number; accept a valid one",
    "not in run": "not in the run",
}


def reason_text(reason: Reason | None) -> str:
    """Return why a verdict is what it is; empty where the verdict says it all."""
    if reason is None:
        return ""
    if isinstance(reason, Unlike):
        return "; ".join(f"{name}: {before} against {now}" for name, (before, now) in reason.values.items())
    if isinstance(reason, Failed):
        return f"{reason.side}: {reason.error}"
    if isinstance(reason, Measured):
        over = f" over {reason.pairs} pairs of processes" if reason.pairs else ""
        hint = f"; {_wanted_text(reason.wanted, reason.pairs is not None)}" if reason.wanted else ""
        return f"{range_text(reason.ratio)}{over}{hint}"
    return _WHY[reason]


def range_text(ratio: LogRatio) -> str:
    """Return an interval in percent: '-1.2 to +6.1 %'."""
    return f"{100 * math.expm1(ratio.low):+.1f} to {100 * math.expm1(ratio.high):+.1f} %"


def _wanted_text(wanted: Wanted, paired: bool) -> str:
    if not paired and wanted.needed is not None and wanted.needed <= wanted.present:
        return f"it is about the smallest change of interest, {100 * wanted.min_effect:g} %"
    what = "pairs" if paired else "processes per side"
    return f"{wanted.needed or 'no affordable number of'} {what} would show {100 * wanted.effect:.3g} %"
