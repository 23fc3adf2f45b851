"""A check against a baseline as lines of text, Markdown and plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qbench.comparison.check import Check, Finding
from qbench.comparison.results import gather
from qbench.comparison.verdicts import CheckVerdict
from qbench.records.record import Record
from qbench.report.markdown import escaped, table_text
from qbench.report.table import plain_table
from qbench.report.terminal.table import aligned
from qbench.units import NOT_AVAILABLE, format_bytes, format_value
from qbench.words.basis import basis_text
from qbench.words.verdicts import reason_text

ORDER: tuple[CheckVerdict, ...] = (
    "worse",
    "changed",
    "missing",
    "not comparable",
    "ambiguous",
    "better",
    "new",
    "same",
)
"""Verdicts in the order in which a person wants to see them."""

MOST_ROWS = 50
"""Findings that are shown one by one; the JSON has all."""


def finding_lines(check: Check) -> list[str]:
    """Return each finding that is not 'same' as a line under the name of its point, the gravest first."""
    told = told_findings(check)
    rows = aligned([_cells(finding) for finding in told[:MOST_ROWS]], "<<>>>")
    by_point: dict[str, list[str]] = {}
    for finding, row in zip(told, rows, strict=False):
        by_point.setdefault(point_text(finding), []).append(f"  {row}")
    lines = [line for point, members in by_point.items() for line in (point, *members)]
    return [*lines, *_more(told)]


def told_findings(check: Check) -> list[Finding]:
    """Return the findings that are not 'same', the gravest first."""
    return sorted(
        check.told, key=lambda found: (not found.fails, not found.gated, ORDER.index(found.verdict))
    )


def _more(told: Sequence[Finding]) -> tuple[str, ...]:
    return (f"{len(told) - MOST_ROWS:,} more; --json lists all.",) if len(told) > MOST_ROWS else ()


def _cells(finding: Finding) -> tuple[str, ...]:
    verdict = finding.verdict if finding.gated else f"({finding.verdict})"
    if finding.metric == "point":
        return (verdict, "the whole point", "", "", "", reason_text(finding.reason))
    values = (_value(finding.baseline, finding.unit), _value(finding.run, finding.unit))
    return (verdict, finding.metric, *values, _change(finding), reason_text(finding.reason))


def point_text(finding: Finding) -> str:
    """Return which point a finding is of, and whether it was planned or measured."""
    return f"{finding.point.label}, {basis_text(finding.kind, finding.device)}"


def finding_text(finding: Finding) -> str:
    """Return what was found on one line: 'worse: peak_allocated_bytes 7.00 GiB -> 8.00 GiB (+14.29 %)'."""
    reason = reason_text(finding.reason)
    note = f"; {reason}" if reason else ""
    if finding.metric == "point":
        return f"{finding.verdict}: the whole point{note}"
    was, now = _value(finding.baseline, finding.unit), _value(finding.run, finding.unit)
    change = "" if finding.change is None else f" ({_change(finding)})"
    return f"{finding.verdict}: {finding.metric} {was} -> {now}{change}{note}"


def _value(value: float | str | None, unit: str) -> str:
    if isinstance(value, str):
        return value
    return NOT_AVAILABLE if value is None else format_value(value, unit)


def _change(finding: Finding) -> str:
    change = finding.change
    return NOT_AVAILABLE if change is None else f"{100 * change:+.2f} %"


def verdict_lines(check: Check, code: int, advice: Sequence[str] = ()) -> list[str]:
    """Return what a check comes to: the verdict, counts, what it could have seen, and what else changed.

    `advice` follows the verdict: what would decide what is undecided.
    """
    said = [
        f"{outcome_text(check, code)}: {_counted(check)}",
        *advice,
        _shown_only(check.told),
        _sensitivity(check),
        _differences(check),
        *(f"Left out: {text}." for text in left_out_texts(check)),
        *(f"--tolerance {name}: no point has a value of it." for name in check.idle_tolerances),
    ]
    return [line for line in said if line]


def left_out_texts(check: Check) -> list[str]:
    """Return which points of the baseline were not compared, by kind."""
    return [f"{count} points of kind {kind}: the run has none" for kind, count in check.left_out.items()]


def outcome_text(check: Check, code: int) -> str:
    """Return the headline: that nothing got worse is said only where everything was decided."""
    if code != 2 and check.is_undecided:
        return "Undecided"
    return {0: "No regression", 1: "Failed", 2: "Not comparable"}[code]


def _counted(check: Check) -> str:
    counts = check.verdicts
    # One of these there is for each point, whatever else it has.
    heads = [finding for finding in check.findings if finding.metric in ("outcome", "point")]
    points = len({(finding.kind, finding.device, finding.point) for finding in heads})
    listed = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in ORDER if counts[verdict])
    return f"{sum(counts.values()):,} values of {points:,} {'point' if points == 1 else 'points'}: {listed}."


def _shown_only(told: Sequence[Finding]) -> str:
    moved = sum(not finding.gated for finding in told)
    return f"{moved:,} values in brackets are shown only; --tolerance gates them." if moved else ""


def _sensitivity(check: Check) -> str:
    seen = check.smallest_visible
    if seen is None:
        return ""
    return f"The smallest change of step time that could have been detected is {100 * seen:.1f} %."


def _differences(check: Check) -> str:
    listed = "; ".join(f"{name} {a} -> {b}" for name, (a, b) in check.differs.items())
    return f"Since the baseline: {listed}." if listed else ""


def summary_markdown(check: Check, code: int, verb: str = "check", advice: Sequence[str] = ()) -> str:
    """Return what `qbench check` or `gate` found as Markdown for the summary of a CI job."""
    told = told_findings(check)
    titles = ("Point", "Verdict", "Metric", "Baseline", "Run", "Change", "Note")
    rows = ((point_text(finding), *_cells(finding)) for finding in told[:MOST_ROWS])
    table = plain_table(titles, rows, _more(told))
    lines = verdict_lines(check, code, advice)
    parts = [f"### qbench {verb}: {escaped(outcome_text(check, code))}", *map(escaped, lines)]
    return "\n\n".join([*parts, *([table_text(table)] if told else [])]) + "\n"


def side_by_side(baseline: Sequence[Record], run: Sequence[Record]) -> list[str]:
    """Return what each point of two sides without a common one takes, as an aligned table."""
    rows: list[tuple[str, ...]] = []
    for side, records in (("baseline", baseline), ("run", run)):
        for result in gather(records):
            sizes = (
                format_bytes(result.value(name)) for name in ("peak_allocated_bytes", "peak_reserved_bytes")
            )
            rows.append((side, result.point.label, *sizes, basis_text(result.kind, result.device)))
    if not rows:
        return []
    head = ("side", "point", "allocated", "reserved", "")
    left_out = [f"{len(rows) - MOST_ROWS:,} more points."] if len(rows) > MOST_ROWS else []
    return ["Peak memory, not judged:", *aligned([head, *rows[:MOST_ROWS]], "<<>>"), *left_out]


def check_document(check: Check, code: int) -> dict[str, Any]:
    """Return a check as plain JSON values, every finding of every verdict in it."""
    return {
        "exit_code": code,
        "headline": outcome_text(check, code),
        "verdicts": {verdict: check.verdicts[verdict] for verdict in ORDER},
        "smallest_visible_change": check.smallest_visible,
        "differs": {name: list(values) for name, values in check.differs.items()},
        "left_out": left_out_texts(check),
        "idle_tolerances": list(check.idle_tolerances),
        "findings": [_finding_values(finding) for finding in check.findings],
    }


def _finding_values(finding: Finding) -> dict[str, Any]:
    return {
        "point_id": finding.point.point_id,
        "point": finding.point.label,
        "kind": finding.kind,
        "device": finding.device,
        "metric": finding.metric,
        "unit": finding.unit,
        "baseline": finding.baseline,
        "run": finding.run,
        "change": finding.change,
        "verdict": finding.verdict,
        "gated": finding.gated,
        "fails": finding.fails,
        "note": reason_text(finding.reason),
        "smallest_visible_change": finding.smallest_visible,
    }
