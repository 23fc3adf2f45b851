"""What two software environments gave for the same points, as tables and as plain JSON values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from qbench.comparison.environments import MIN_PAIRS, OF_A_STEP, ExactChange, PointChange, TimeChange
from qbench.comparison.methods import Difference
from qbench.records.metrics import METRICS
from qbench.report.table import Table, Value, plain_table
from qbench.units import format_count, format_value
from qbench.words.settings import describe, other_settings

_FEW_PAIRS = 5
MOST_OTHERS = 5
"""Packages outside a training step that are listed."""

INTERVAL_METHOD = (
    "geometric mean over pairs of processes of b / a, each process represented by the median of its steps; "
    "95 % interval from Student's t on the logarithms of the pairs' ratios"
)

Row = tuple[Value, ...]


def packages_table(changes: Sequence[Difference]) -> Table:
    """Return a row for each package of a training step that differs, and for a few of the others."""
    most = sum(change.name in OF_A_STEP for change in changes) + MOST_OTHERS
    rows = tuple(
        (change.name, change.baseline or "not installed", change.candidate or "not installed")
        for change in changes[:most]
    )
    rest = len(changes) - len(rows)
    return plain_table(
        ("Package", "A", "B"), rows, [f"{rest} more packages differ; --json lists them."] if rest else []
    )


def point_title(change: PointChange) -> str:
    """Return the settings of a point that matter most, and others that are no defaults; or the program."""
    if change.point.program is not None:
        return change.point.label
    return ", ".join([describe(change.point), *other_settings(change.point)])


def point_table(change: PointChange) -> Table:
    """Return one row for each metric: its value in A and in B, and B against A; endings where one failed."""
    rows = [row for exact in change.exact for row in _exact_rows(exact, change)]
    notes = [
        f"{METRICS[exact.metric].title} differs between processes of one environment; medians are shown."
        for exact in change.exact
        if not exact.steady
    ]
    if change.time is not None:
        rows.append((METRICS["step_time_s"].title, *_time_cells(change.time)))
    if not change.completed or {record.outcome for record in change.a + change.b} != {"ok"}:
        rows.append(("Outcome", _endings(change.a), _endings(change.b), ""))
    return plain_table(("", "A", "B", "B against A"), rows, notes)


def _exact_rows(exact: ExactChange, change: PointChange) -> list[Row]:
    unit = METRICS[exact.metric].unit
    rows: list[Row] = [
        (
            METRICS[exact.metric].title,
            format_value(statistics.median(exact.a), unit),
            format_value(statistics.median(exact.b), unit),
            difference_text(exact),
        )
    ]
    if exact.metric == "peak_allocated_bytes" and not exact.equal:
        rows += [
            (f"  {category}", "", "", f"{difference:+,} B")
            for category, difference in change.breakdown.items()
        ]
    return rows


def difference_text(exact: ExactChange) -> str:
    """Return 'equal', or the difference to the byte with its share of A."""
    if exact.equal:
        return "equal"
    unit = " B" if METRICS[exact.metric].unit == "bytes" else ""
    share = "" if exact.percent is None else f" ({exact.percent:+.3g} %)"
    sign = "+" if exact.difference >= 0 else "-"
    return f"{sign}{format_count(abs(exact.difference))}{unit}{share}"


def _time_cells(time: TimeChange) -> Row:
    return (
        format_value(statistics.median(time.a), "s"),
        format_value(statistics.median(time.b), "s"),
        time_text(time),
    )


def time_text(time: TimeChange) -> str:
    """Return the ratio of step times with its interval and the number of pairs of processes behind it."""
    pairs = min(len(time.a), len(time.b))
    if time.interval is None:
        return (
            f"x {time.ratio:.3f} (no interval from {pairs} {'pair' if pairs == 1 else 'pairs'} of processes)"
        )
    low, high = time.interval
    return f"x {time.ratio:.3f} [{low:.3g}, {high:.3g}], {pairs} pairs of processes"


def _endings(records: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(record.outcome for record in records)) or "not run"


def summary_lines(changes: Sequence[PointChange]) -> list[str]:
    """Return the answer in one sentence each: memory, parameters, speed, and points that failed."""
    done = [change for change in changes if change.completed]
    lines = [
        _exact_sentence("Memory", "bytes", done),
        _exact_sentence("Parameter counts", "count", done),
        _speed_sentence(done),
    ]
    failed = len(changes) - len(done)
    if failed:
        lines.append(
            f"{failed} of {len(changes)} points cannot be compared: a number is missing on one side or both."
        )
    return [line for line in lines if line]


def _exact_sentence(what: str, unit: str, changes: Sequence[PointChange]) -> str:
    differing = [
        (exact, change)
        for change in changes
        for exact in change.exact
        if METRICS[exact.metric].unit == unit and not exact.equal
    ]
    points = {change.point for _, change in differing}
    if not changes:
        return ""
    if not points:
        return f"{what}: equal in {_all(len(changes))}."
    largest, where = max(differing, key=lambda pair: abs(pair[0].percent or 0))
    return (
        f"{what}: different in {len(points)} of {len(changes)} points. The largest difference is "
        f"{difference_text(largest)} of {METRICS[largest.metric].title.lower()}: {point_title(where)}."
    )


def _all(count: int) -> str:
    return "the one point" if count == 1 else f"all {count} points"


def _speed_sentence(changes: Sequence[PointChange]) -> str:
    times = [change.time for change in changes if change.time is not None]
    known = [time for time in times if time.resolved is not None]
    if not times:
        return ""
    if not known:
        return (
            f"Step time: {MIN_PAIRS} pairs of processes or more show a difference from chance; use --repeats."
        )
    slower = sum(1 for time in known if time.resolved and time.ratio > 1)
    faster = sum(1 for time in known if time.resolved and time.ratio < 1)
    few = (
        f" {_fewest(known)} pairs of processes are few; --repeats gives more."
        if _fewest(known) < _FEW_PAIRS
        else ""
    )
    return (
        f"Step time: B is slower in {slower}, faster in {faster} of {len(known)} points; in "
        f"{len(known) - slower - faster} the interval includes no change.{few} "
        f"The ratio is the {INTERVAL_METHOD}."
    )


def _fewest(times: Sequence[TimeChange]) -> int:
    return min(min(len(time.a), len(time.b)) for time in times)


def as_json(changes: Sequence[PointChange]) -> list[dict[str, Any]]:
    """Return each point as plain JSON values: raw values of each process, differences, ratio and interval."""
    return [
        {
            "point_id": change.point.point_id,
            "point": change.point.model_dump(mode="json"),
            "outcomes": {
                "a": [record.outcome for record in change.a],
                "b": [record.outcome for record in change.b],
            },
            "metrics": {exact.metric: _exact_json(exact) for exact in change.exact},
            "breakdown_difference_bytes": change.breakdown,
            "step_time_s": None if change.time is None else _time_json(change.time),
        }
        for change in changes
    ]


def _exact_json(exact: ExactChange) -> dict[str, Any]:
    return {
        "unit": METRICS[exact.metric].unit,
        "a": list(exact.a),
        "b": list(exact.b),
        "equal": exact.equal,
        "difference": exact.difference,
        "percent": exact.percent,
    }


def _time_json(time: TimeChange) -> dict[str, Any]:
    interval = None if time.interval is None else list(time.interval)
    method = None if time.interval is None else INTERVAL_METHOD
    ratio = {"ratio": time.ratio, "interval": interval, "method": method}
    return {"a": list(time.a), "b": list(time.b), **ratio}
