"""Published memory measurements: which of them can be planned again, and why the others cannot."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from qbench.catalog.rows import catalog_rows, listed, optional, yes_or_no
from qbench.units import GIB

FIGURES: dict[str, str] = {
    "max_allocated": "Largest allocated bytes of the whole process.",
    "max_reserved": "Largest bytes reserved by the caching allocator, of the whole process.",
    "max_reserved_first_step": "The same, if no earlier step was as large.",
    "allocated_after_load": "Allocated once the model is loaded and prepared.",
    "allocated_after_adapters": "Allocated once the adapters are added.",
    "allocated_after_forward": "Allocated between the first forward and backward pass.",
    "allocated_after_backward": "Allocated between the first backward pass and the optimizer's step.",
    "allocated_between_steps": "Weights, adapters, optimizer state, library workspaces and the batch.",
    "trainable_params": "Parameters that receive a gradient, counted by peft.",
    "total_params": "All parameters, counted by peft.",
}
"""What was measured, with what it means; the order is that of reports."""

COUNTS = ("trainable_params", "total_params")
"""Figures that are counts, not bytes."""

_SCALES = {"GiB": GIB, "B": 1, "count": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One published figure and all that is known of the run behind it."""

    id: str
    """Name of the row; rows of one group come from one project."""
    group: str
    """Short name of the project."""
    figure: str
    """What was measured; a key of FIGURES."""
    value: int
    """The figure in bytes, or a count."""
    model: str
    """Name of the model in the catalog."""
    precision: str
    """Precision of the base model."""
    r: int | None
    """Rank of the adapters; None for full fine-tuning."""
    lora_alpha: float | None
    """Scaling numerator; None for full fine-tuning."""
    lora_dropout: float | None
    """Dropout of the adapters; None for full fine-tuning."""
    target_modules: tuple[str, ...]
    """Adapted modules; empty for full fine-tuning."""
    batch: int
    """Sequences in a forward pass."""
    seq_len: int
    """Tokens in a sequence."""
    gradient_checkpointing: bool
    """Whether layers were recomputed."""
    optim: str
    """Optimizer, by the name that TrainingArguments gives it."""
    recipe: str
    """The recipe that the source's preparation and loop amount to."""
    gpu: str
    """Name of the GPU in the catalog."""
    system: str
    """Operating system where the source states it, else empty."""
    stack: str
    """Versions of the libraries."""
    conditions: str
    """What else the source says, and what was assumed."""
    source: str
    """Where the figure was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared:
    """Published figures of one project that are not planned again."""

    group: str
    """Short name of the project."""
    part: str
    """Which of its figures; empty for all."""
    rows: int
    """How many figures."""
    source: str
    """Where they were published."""
    reason: str
    """Why they are not compared."""


@functools.cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Return all published figures that are planned again."""
    return catalog_rows(
        "published_memory.csv",
        _row,
        r=optional(int),
        lora_alpha=optional(float),
        lora_dropout=optional(float),
        target_modules=listed,
        batch=int,
        seq_len=int,
        gradient_checkpointing=yes_or_no,
    )


def _row(value: str, unit: str, **known: Any) -> PublishedRow:
    return PublishedRow(value=round(float(value) * _SCALES[unit]), **known)


@functools.cache
def not_compared() -> tuple[NotCompared, ...]:
    """Return the published figures that were looked at and left out, by project."""
    return catalog_rows("published_not_compared.csv", NotCompared, rows=int)
