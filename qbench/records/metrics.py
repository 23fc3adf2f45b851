"""The metrics, one row each. Every table, chart, export and gate reads name, unit and direction here."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, Literal

from qbench.records.record import Record

Better = Literal["lower", "higher", "neither"]

BREAKDOWN = (
    "weights",
    "quant_state",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "logits_loss",
    "temporaries",
    "workspace",
)
"""Categories of `breakdown_bytes`, in the order in which charts stack them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What every reader of a number needs to know about it."""

    name: str
    unit: str
    better: Better
    description: str


_ROWS = (
    Metric("trainable_params", "count", "neither", "Parameters that receive a gradient, counted by peft."),
    Metric(
        "total_params",
        "count",
        "neither",
        "All parameters, adapters included; packed 4-bit weights count unpacked.",
    ),
    Metric(
        "static_bytes",
        "bytes",
        "lower",
        "Model, quantization state and adapters at rest, before the first step.",
    ),
    Metric(
        "peak_allocated_bytes",
        "bytes",
        "lower",
        "Largest sum of live tensor storages, each rounded up to 512 B as the CUDA caching allocator does.",
    ),
    Metric(
        "peak_reserved_bytes",
        "bytes",
        "lower",
        "Largest memory held by the CUDA caching allocator, fragments included; the CUDA context is not.",
    ),
    Metric(
        "device_bytes", "bytes", "lower", "What nvidia-smi would show: reserved memory and the CUDA context."
    ),
    Metric(
        "breakdown_bytes", "bytes", "lower", "peak_allocated_bytes by category at the instant of the peak."
    ),
    Metric("peak_at", "", "neither", "Phase, operator and module at the instant of the peak."),
    Metric(
        "flops", "FLOP", "lower", "Floating-point operations of one optimizer step, recomputation included."
    ),
    Metric("step_time_s", "s", "lower", "Wall time of one optimizer step."),
    Metric(
        "tokens_per_s",
        "tokens/s",
        "higher",
        "Tokens trained on in a second: batch x sequence x accumulation / step time.",
    ),
    Metric(
        "cost_usd_per_mtok",
        "USD/Mtok",
        "lower",
        "Price of training on a million tokens at the catalog's rate.",
    ),
    Metric("loss", "nats/token", "lower", "Cross-entropy of the training batch, step by step."),
)

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}

SCALARS: tuple[str, ...] = tuple(name for name in METRICS if name not in ("breakdown_bytes", "peak_at"))
"""The metrics for which `scalar` gives one number."""


def scalar(record: Record, name: str) -> float | None:
    """Return one number for a metric of a record: the median where raw values are a list, None when unknown.

    Raises KeyError when there is no such metric, and for those that are not one number (see SCALARS).
    """
    if name not in SCALARS:
        raise KeyError(f"{name} is not one number")
    value: Any = record.metrics.get(name)
    if isinstance(value, list):
        known = [number for number in value if number is not None]
        return statistics.median(known) if known else None
    return None if value is None else float(value)
