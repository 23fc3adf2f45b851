"""Tolerances as a person writes them: METRIC=1% or METRIC=8MiB."""

from __future__ import annotations

from qbench.comparison.verdicts import Tolerance
from qbench.errors import QbenchError, nearest, shown
from qbench.records.metrics import BREAKDOWN, FACTS, METRICS
from qbench.units import parse_bytes

MOST_PERCENT = 1e6


def parse_tolerance(text: str, flag: str = "--tolerance") -> tuple[str, Tolerance]:
    """Return metric and tolerance of a text such as 'peak_allocated_bytes=1%' or 'static_bytes=8MiB'.

    Raises QbenchError, which names `flag`, when there is no such metric or the amount is no share or size.
    """
    name, _, amount = text.partition("=")
    parts = [f"breakdown_bytes.{category}" for category in BREAKDOWN]
    known = [name for name in METRICS if name != "peak_at"] + parts + [fact.name for fact in FACTS]
    if name not in known:
        close = nearest(name, known, count=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise QbenchError(f"{flag}: {name!r} is not a metric; {hint}give METRIC=1% or METRIC=8MiB")
    share = amount.removesuffix("%").strip()
    if amount.endswith("%") and _is_number(share) and float(share) <= MOST_PERCENT:
        return name, Tolerance(relative=float(share) / 100)
    try:
        absolute = parse_bytes(amount)
    except ValueError:
        absolute = None
    if absolute is None or not name.partition(".")[0].endswith("_bytes"):
        raise QbenchError(
            f"{flag} {name}: given {shown(amount)}; allowed: a share such as 1%, or for bytes a size such as "
            "8MiB"
        )
    return name, Tolerance(absolute=absolute)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
