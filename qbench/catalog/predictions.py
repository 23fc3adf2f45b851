"""What other public tools predict for published measurements; `benchmarks/predictors.py` asked them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from qbench.catalog.rows import catalog_rows, optional


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherPrediction:
    """One tool's answer for one published figure."""

    tool: str
    """Name of the tool on PyPI."""
    version: str
    """Its version."""
    asked_on: str
    """Date of the prediction, year first."""
    id: str
    """The published figure; the id of a `PublishedRow`."""
    quantity: str
    """Which of the tool's figures this is; empty without a prediction."""
    predicted_bytes: int | None
    """The prediction; None when the tool cannot express the step or does not predict such a figure."""
    how: str
    """The call and what it cannot express; without a prediction, the reason."""


@functools.cache
def other_predictions() -> tuple[OtherPrediction, ...]:
    """Return the answers of all tools, those of one tool together."""
    return catalog_rows("other_predictors.csv", OtherPrediction, predicted_bytes=optional(int))
