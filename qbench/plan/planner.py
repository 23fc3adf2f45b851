"""The plan of a point: a `Record` with the bytes of its traced training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from qbench.catalog.gpus import GpuSpec
from qbench.catalog.gpus import gpus as catalog_gpus
from qbench.catalog.prices import cheapest_on_demand
from qbench.plan.hardware import (
    CUDA_CONTEXT_BYTES,
    capability_of,
    fits,
    has_flash,
    headroom_bytes,
    library_buffers,
)
from qbench.plan.trace import Trace, trace
from qbench.records.record import Record
from qbench.records.software import software
from qbench.scenario.schema import QUANTIZED_PRECISIONS, Device, Point


def plan(point: Point, device: Device = "cuda", gpus: Sequence[GpuSpec] = (), run_id: str = "plan") -> Record:
    """Return the planned record of a point, with the kernels of `device`.

    `gpus` are held against the plan (detail.fits); the first gives the compute capability. Raises
    StepError when the step cannot be built.
    """
    capability = capability_of(tuple(gpus))
    buffers = library_buffers(capability) if device == "cuda" else None
    traced = trace(point, device, buffers, flash=has_flash(capability))
    metrics = _metrics(traced)
    detail = _detail(traced, point)
    if device == "cuda":
        _add_cuda(traced, metrics, detail, gpus, capability)
    return Record(
        run_id=run_id,
        point=point,
        kind="plan",
        outcome="ok",
        metrics=metrics,
        detail=detail,
        environment={"device": device, **software()},
    )


def _metrics(traced: Trace) -> dict[str, Any]:
    memory = traced.memory
    return {
        "trainable_params": traced.facts.trainable_params,
        "total_params": traced.facts.total_params,
        "static_bytes": memory.static_bytes,
        "peak_allocated_bytes": memory.peak_bytes,
        "breakdown_bytes": memory.breakdown,
        "peak_at": memory.peak_at,
    }


def _detail(traced: Trace, point: Point) -> dict[str, Any]:
    facts, memory = asdict(traced.facts), traced.memory
    skipped = list(facts.pop("skipped"))
    return {
        "model": facts,
        "skipped": skipped,
        "caveats": list(traced.caveats) + _skip_caveats(skipped, point),
        "static_breakdown_bytes": memory.static_breakdown,
        "base_weights": _base_weights(traced),
        "managed_bytes": traced.managed_bytes,
        "phases": memory.phases,
        "timeline": memory.timeline,
    }


def _skip_caveats(skipped: list[dict[str, Any]], point: Point) -> list[str]:
    """Say loudly when quantization leaves most of a model in 16 bit."""
    share = sum(group["share"] for group in skipped)
    if point.precision not in QUANTIZED_PRECISIONS or share < 0.5:
        return []
    return [
        f"{share:.0%} of the base weights stay unquantized: {skipped[0]['module']} ({skipped[0]['reason']})"
    ]


def _base_weights(traced: Trace) -> dict[str, int]:
    """Return what the base model weighs in 16 bit and as built, in bytes, before adapters.

    These are the bytes of the tensors; what an allocator adds to them is no property of the weights.
    """
    facts = traced.facts
    asked = dict.fromkeys(("weights", "quant_state"), 0)
    for allocation in traced.ledger.allocations:
        if allocation.category in asked:
            asked[allocation.category] += allocation.num_bytes
    return {
        "sixteen_bit_bytes": 2 * facts.base_params,
        "quantized_bytes": facts.quantized_bytes,
        "quant_state_bytes": asked["quant_state"],
        "unquantized_bytes": asked["weights"] - facts.quantized_bytes,
        "quantized_params": facts.quantized_params,
        "unquantized_params": facts.base_params - facts.quantized_params,
    }


def _add_cuda(
    traced: Trace,
    metrics: dict[str, Any],
    detail: dict[str, Any],
    gpus: Sequence[GpuSpec],
    capability: tuple[int, int],
) -> None:
    """Add what only CUDA has: the caching allocator's reserve, the context, and which cards hold it."""
    assert traced.reserved_bytes is not None
    device_bytes = traced.reserved_bytes + CUDA_CONTEXT_BYTES[1]
    metrics["peak_reserved_bytes"] = traced.reserved_bytes
    metrics["device_bytes"] = device_bytes
    detail["caveats"] += _card_caveats(gpus, capability)
    detail["compute_capability"] = list(capability)
    detail["context_bytes"] = list(CUDA_CONTEXT_BYTES)
    detail["fits"] = [_held_against(gpu, device_bytes) for gpu in gpus]


def _card_caveats(gpus: Sequence[GpuSpec], capability: tuple[int, int]) -> list[str]:
    """Say where one plan does not speak for every card that was named."""
    said = []
    others = [gpu.name for gpu in gpus if gpu.compute_capability != capability]
    if others:
        version = ".".join(map(str, capability))
        said.append(
            f"kernels are those of compute capability {version}; {', '.join(others)} may choose others"
        )
    slow = [gpu.name for gpu in gpus if gpu.peak_flops.get("bf16") is None]
    if slow:
        said.append(
            f"{', '.join(slow)} without bf16 hardware (or no figure for it) will be slow or need fp16"
        )
    return said


def _held_against(gpu: GpuSpec, device_bytes: int) -> dict[str, Any]:
    """Return whether a card holds the plan, what is left, and its cheapest price with cloud and date."""
    price = cheapest_on_demand(gpu.name) if gpu in catalog_gpus() else None
    return {
        "gpu": gpu.name,
        "memory_bytes": gpu.memory_bytes,
        "fits": fits(device_bytes, gpu),
        "headroom_bytes": headroom_bytes(device_bytes, gpu),
        "usd_per_hour": None if price is None else price.on_demand_usd_per_hour,
        "price_from": None if price is None else f"{price.cloud}, {price.date}",
    }
