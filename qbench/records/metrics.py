"""The metrics, one row each. Tables, charts, exports and gates read title, unit and direction here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Better = Literal["lower", "higher", "neither"]

Gate = Literal["exact", "near", "statistical", "report"]
"""How `qbench check` holds a metric against a baseline: equal; equal within a tolerance; an interval over
processes; shown only, unless a tolerance is given."""

OF_SEVERAL_GPUS = ("gathered", "communication", "buckets")
"""Categories that only several GPUs have: whole parameters gathered from shards, what is sent or received,
and DDP's buckets of gradients."""

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
    *OF_SEVERAL_GPUS,
)
"""Categories of `breakdown_bytes`, in the order in which charts stack them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What every reader of a number needs to know about it."""

    name: str
    title: str
    """Name in tables, charts and on the page."""
    unit: str
    """As `units.format_value` takes it."""
    better: Better
    description: str
    gate: Gate = "report"


class HasMetrics(Protocol):
    """What `scalar` reads: a record."""

    @property
    def metrics(self) -> Mapping[str, object]:
        """Values by metric name."""


_ROWS = (
    Metric(
        "trainable_params",
        "Trainable",
        "count",
        "neither",
        "Parameters that receive a gradient, counted by peft.",
        "exact",
    ),
    Metric(
        "total_params",
        "Parameters",
        "count",
        "neither",
        "All parameters, adapters included; packed 4-bit weights count unpacked.",
        "exact",
    ),
    Metric(
        "static_bytes",
        "At rest",
        "bytes",
        "lower",
        "Model, quantization state and adapters at rest, before the first step.",
        "near",
    ),
    Metric(
        "peak_allocated_bytes",
        "Peak allocated",
        "bytes",
        "lower",
        "Largest sum of live tensor storages, each rounded up to 512 B as the CUDA caching allocator does.",
        "near",
    ),
    Metric(
        "peak_reserved_bytes",
        "Peak reserved",
        "bytes",
        "lower",
        "Largest memory held by the CUDA caching allocator, fragments included, the CUDA context excluded.",
    ),
    Metric(
        "device_bytes",
        "On the device",
        "bytes",
        "lower",
        "What nvidia-smi would show: reserved memory and the CUDA context.",
    ),
    Metric(
        "breakdown_bytes",
        "Peak by category",
        "bytes",
        "lower",
        "peak_allocated_bytes by category at the instant of the peak.",
        "near",
    ),
    Metric(
        "peak_at",
        "Place of the peak",
        "",
        "neither",
        "Phase, operator and module at the instant of the peak.",
    ),
    Metric(
        "flops",
        "Arithmetic",
        "FLOP",
        "lower",
        "Floating-point operations of a step's matrix products and attention, recomputed ones included.",
        "near",
    ),
    Metric(
        "step_time_s",
        "Step time",
        "s",
        "lower",
        "Wall time of one optimizer step; of a plan, that of a roofline over its operators.",
        "statistical",
    ),
    Metric(
        "host_time_s",
        "Host time",
        "s",
        "lower",
        "Time that the host needs to issue one step on a null GPU: a lower bound for a GPU with this host.",
    ),
    Metric(
        "tokens_per_s",
        "Throughput",
        "tokens/s",
        "higher",
        "Tokens trained on in a second: batch x sequence x accumulation / step time.",
        "statistical",
    ),
    Metric(
        "cost_usd_per_mtok",
        "Cost",
        "USD/Mtok",
        "lower",
        "Price of training on a million tokens at the catalog's rate.",
    ),
    Metric("loss", "Loss", "nats/token", "lower", "Cross-entropy of the training batch, step by step."),
    Metric(
        "text_loss",
        "Loss on the text",
        "nats/token",
        "lower",
        "Cross-entropy over the whole text after the steps of a run.",
    ),
    Metric(
        "weight_error",
        "Weight error",
        "",
        "lower",
        "Norm of what quantization changed in the base weights, as a share of the norm of these weights.",
    ),
)

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}

SCALARS: tuple[str, ...] = tuple(name for name in METRICS if name not in ("breakdown_bytes", "peak_at"))
"""The metrics for which `scalar` gives one number."""

_SCALARS = frozenset(SCALARS)


@dataclass(frozen=True, slots=True)
class Fact:
    """What was built, as a record's detail says it: counts, sizes and dtypes that no noise can change."""

    name: str
    unit: str
    path: tuple[str, str]
    """Section of the detail, and key in it."""
    description: str


FACTS = (
    Fact("quantized_modules", "count", ("model", "quantized_modules"), "Modules with a quantized weight."),
    Fact("quantized_types", "", ("model", "quantized_types"), "Their number by class and kind of weight."),
    Fact("quantized_params", "count", ("model", "quantized_params"), "Parameters in quantized weights."),
    Fact("quantized_bytes", "bytes", ("model", "quantized_bytes"), "Packed weights without their state."),
    Fact("adapted_modules", "count", ("model", "adapted_modules"), "Modules with an adapter."),
    Fact("dtypes", "", ("model", "dtypes"), "dtypes of embeddings, output head, norms and adapters."),
    Fact("adapter_bytes", "bytes", ("static_breakdown_bytes", "adapters"), "Adapters at rest."),
)
"""The facts that `qbench check` holds to be equal, beside the metrics of the exact class."""


def scalar(record: HasMetrics, name: str) -> float | None:
    """Return one number for a metric of a record: the median where raw values are a list, None when unknown.

    Raises KeyError when there is no such metric, and for those that are not one number (see SCALARS).
    """
    if name not in _SCALARS:
        raise KeyError(f"{name} is not one number")
    value = record.metrics.get(name)
    if isinstance(value, list):
        known = [number for number in value if number is not None]
        return statistics.median(known) if known else None
    return float(value) if isinstance(value, (int, float)) else None
