"""Dry runs as a table: the program, the card, how it ended, and its memory."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.comparison.results import Result
from qbench.report.table import Draft, Table
from qbench.report.tables import Numbers, record_ranges
from qbench.words.basis import NULL_NOTE


def dry_runs_table(results: Sequence[Result], numbers: Numbers) -> Table | None:
    """Return one row for each program and card."""
    draft = Draft()
    latest = [result.latest for result in results]
    draft.add("Program", [result.point.label for result in results])
    draft.add("Null GPU", [record.card for record in latest])
    draft.add("Ended as", [result.outcome for result in results])
    draft.add("At rest", [record.value("static_bytes") for record in latest], "bytes")
    draft.add("Peak allocated", [record.peak_allocated_bytes for record in latest], "bytes")
    draft.add("Peak reserved", [record.peak_reserved_bytes for record in latest], "bytes")
    draft.add("Retries", [record.alloc_retries for record in latest])
    draft.add("Ranks", [len(record.ranks) or None for record in latest])
    draft.add("Stand-ins", ["; ".join(record.stand_ins) for record in latest])
    draft.add("Records", [record_ranges([result], numbers) for result in results])
    return draft.table(NULL_NOTE) if results else None
