"""Published throughput of steps whose memory was published too, so that all conditions are known."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass

from qbench.catalog.names import DATA
from qbench.catalog.published import PublishedRow, published_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSpeed:
    """One published throughput and the step that it was measured on."""

    id: str
    step: PublishedRow
    """The published memory figure of the same run, which says how it was set up."""
    tokens_per_s: float
    source: str
    """Where the figure was published."""
    notes: str
    """How it was measured."""


@functools.cache
def published_speeds() -> tuple[PublishedSpeed, ...]:
    """Return all published throughputs that are planned again."""
    steps = {row.id: row for row in published_rows()}
    with (DATA / "published_throughput.csv").open(encoding="utf-8", newline="") as lines:
        return tuple(
            PublishedSpeed(
                id=row["id"],
                step=steps[row["step"]],
                tokens_per_s=float(row["tokens_per_s"]),
                source=row["source"],
                notes=row["notes"],
            )
            for row in csv.DictReader(lines)
        )
