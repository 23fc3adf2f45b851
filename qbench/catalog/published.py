"""Published memory measurements: which of them can be planned again, and why the others cannot."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass

from qbench.catalog.names import DATA
from qbench.units import GIB

FIGURES: dict[str, str] = {
    "max_allocated": "Largest allocated bytes of the whole process.",
    "max_reserved": "Largest bytes reserved by the caching allocator, of the whole process.",
    "max_reserved_first_step": "The same, where no step before was as large.",
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

_TEXTS = (
    "id",
    "group",
    "figure",
    "model",
    "precision",
    "optim",
    "recipe",
    "gpu",
    "system",
    "stack",
    "conditions",
    "source",
)

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
    with (DATA / "published_memory.csv").open(encoding="utf-8", newline="") as lines:
        return tuple(_row(row) for row in csv.DictReader(lines))


@functools.cache
def not_compared() -> tuple[NotCompared, ...]:
    """Return the published figures that were looked at and left out, by project."""
    with (DATA / "published_not_compared.csv").open(encoding="utf-8", newline="") as lines:
        return tuple(
            NotCompared(**row | {"rows": int(row["rows"])})  # type: ignore[arg-type]
            for row in csv.DictReader(lines)
        )


def _row(row: dict[str, str]) -> PublishedRow:
    return PublishedRow(
        **{name: row[name] for name in _TEXTS},
        value=round(float(row["value"]) * _SCALES[row["unit"]]),
        r=int(row["r"]) if row["r"] else None,
        lora_alpha=_number(row["lora_alpha"]),
        lora_dropout=_number(row["lora_dropout"]),
        target_modules=tuple(row["target_modules"].split(";")) if row["target_modules"] else (),
        batch=int(row["batch"]),
        seq_len=int(row["seq_len"]),
        gradient_checkpointing={"yes": True, "no": False}[row["gradient_checkpointing"]],
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
