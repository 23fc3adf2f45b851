"""Which raw records a number stands on: each record has a number, which tables, charts and the CSV name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qbench.records.record import Record
from qbench.report.table import Draft, Table
from qbench.words.basis import device_text

MOST_LISTED = 400
"""Records that are listed one by one; the CSV has all."""


def record_numbers(records: Iterable[Record]) -> dict[int, int]:
    """Return the number of each record, in the order in which a report was given them."""
    return {id(record): number for number, record in enumerate(records, start=1)}


def records_table(records: Sequence[Record], places: Sequence[str] = ()) -> Table | None:
    """Return one row for each record: number, where it is stored, run, point, how it was made and ended."""
    total, records, places = len(records), records[:MOST_LISTED], places[:MOST_LISTED]
    draft = Draft()
    draft.add("Record", range(1, len(records) + 1))
    draft.add("Stored at", places or [None] * len(records))
    draft.add("Run", [record.run_id for record in records])
    draft.add("Point id", [record.point_id for record in records])
    draft.add("Point", [record.point.label for record in records])
    draft.add("Kind", [record.kind for record in records])
    draft.add("Process", [record.repeat for record in records])
    draft.add("Device", [device_text(record.device) for record in records])
    draft.add("Ended as", [record.outcome for record in records])
    draft.add("Made at", [record.created_at for record in records])
    more = f"The first {MOST_LISTED:,} of {total:,} records are listed; report.csv has all of them by number."
    return draft.table(*([more] if total > MOST_LISTED else []))
