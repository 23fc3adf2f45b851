"""Published throughput of steps whose memory was published too, so that all conditions are known."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from qbench.catalog.published import PublishedRow, published_rows
from qbench.catalog.rows import catalog_rows


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
    return catalog_rows(
        "published_throughput.csv", PublishedSpeed, step=steps.__getitem__, tokens_per_s=float
    )
