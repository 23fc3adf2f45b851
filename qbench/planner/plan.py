"""The plan of a point: a `Record` with the bytes of its traced training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qbench.catalog.capabilities import context_size
from qbench.catalog.gpus import GpuSpec
from qbench.catalog.gpus import gpus as catalog_gpus
from qbench.catalog.prices import cheapest_on_demand
from qbench.errors import StepError
from qbench.memory.allocator.config import AllocatorConfig
from qbench.memory.kernels.choices import Card, kernel_caveats
from qbench.planner.fit_verdict import fit_of
from qbench.planner.hardware import card_of
from qbench.planner.ranks import distributed_caveats, largest_rank
from qbench.planner.shared import SharedTraces
from qbench.planner.times_on_cards import Held, cpu_times, gpu_times
from qbench.planner.trace import Trace
from qbench.records.calibration import Calibration
from qbench.records.fits import Fit
from qbench.records.parts import AllocatorSettings, BaseWeights, Detail, Environment, Metrics, Skipped
from qbench.records.record import Record
from qbench.records.software import software
from qbench.scenario.distributed import TIMED
from qbench.scenario.schema import QUANTIZED_PRECISIONS, Device, Point

_NO_COLLECTION = (
    "garbage_collection_threshold acts only in a process that set a memory fraction; planned without it"
)


def plan(
    point: Point,
    device: Device = "cuda",
    gpus: Sequence[GpuSpec] = (),
    run_id: str = "plan",
    allocator: AllocatorConfig | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    tracer: SharedTraces | None = None,
    calibrations: Sequence[Calibration] = (),
) -> Record:
    """Return the planned record of a point, with the kernels of `device`.

    On CUDA the plan is checked against `gpus` (detail.fits), each with the kernels that it would run; the
    metrics are those of the first that has kernels for the step. `allocator` has the settings of CUDA's
    caching allocator, None its defaults; the environment is never asked. `on_trace` is given the trace of
    that GPU, with every allocation. `tracer` is asked for the traces, None runs the step. Raises StepError
    when the step cannot be built.

    A plan has step times where a GPU is named, or a calibration of the device is among `calibrations`; on the
    CPU that is the only source of them. The metrics have none where their GPU does not hold the step;
    detail.fits says what it would take there, memory aside.
    """
    gpus = gpus if device == "cuda" else ()
    asked = allocator or AllocatorConfig()
    # torch collects garbage only in a process that set a memory fraction (`setMemoryFraction`).
    allocator = replace(asked, garbage_collection_threshold=None)
    mine = [found for found in calibrations if found.device == device]
    is_timed = _is_timed(point, gpus, mine)
    cards = [card_of(gpu) for gpu in gpus] or [card_of(None)]
    traces = tracer or SharedTraces([point])
    card, found, ranks = largest_rank(traces, point, device, cards, allocator, with_costs=is_timed)
    traced = found[card]
    if isinstance(traced, StepError):
        raise traced
    if on_trace is not None:
        on_trace(traced)
    metrics = _metrics(traced)
    caveats = list(traced.caveats) + _skip_caveats(traced.facts.skipped, point)
    detail = _detail(traced, caveats)
    if point.distributed is not None:
        detail |= {"ranks": ranks, "collectives": [*traced.collectives]}
        caveats += distributed_caveats(traced, point)
    if device == "cuda":
        held = [(gpu, found[on]) for gpu, on in zip(gpus, cards, strict=False)]
        fits = [_held_against(*pair, allocator, point.num_gpus) for pair in held]
        timed = gpu_times(held, point, fits, mine)
        _add_cuda(traced, metrics, detail, card)
        detail["fits"] = [fit.to_values() for fit in timed.fits]
        detail["allocator"] = _settings(asked)
        caveats += _card_caveats(held, traced, card, point) + list(timed.caveats)
        caveats += [_NO_COLLECTION] if asked != allocator else []
        caveats += _kernel_caveats([(None, traced), *held], card, point)
        metrics |= timed.metrics
    elif traced.work is not None:
        timed = cpu_times(traced.work, point, mine[0])
        detail["time"] = timed.time
        caveats += timed.caveats
        metrics |= timed.metrics
    return _record(run_id, point, metrics, detail, {"device": device, **software()})


def _is_timed(point: Point, gpus: Sequence[GpuSpec], calibrations: Sequence[Calibration]) -> bool:
    """Return whether a step's time is planned: for named GPUs, or for a device that was calibrated."""
    if point.distributed is not None:
        return bool(gpus) and point.distributed.strategy in TIMED
    return bool(gpus) or any(found.device == "cpu" for found in calibrations)


def _record(run_id: str, point: Point, metrics: Metrics, detail: Detail, env: Environment) -> Record:
    return Record(
        run_id=run_id,
        point=point,
        kind="plan",
        outcome="ok",
        metrics=metrics,
        detail=detail,
        environment=env,
    )


def _metrics(traced: Trace) -> Metrics:
    memory = traced.memory
    return {
        "trainable_params": traced.facts.trainable_params,
        "total_params": traced.facts.total_params,
        "static_bytes": memory.static_bytes,
        "peak_allocated_bytes": memory.peak_bytes,
        "breakdown_bytes": memory.breakdown,
        "peak_at": memory.peak_at,
    }


def _detail(traced: Trace, caveats: list[str]) -> Detail:
    facts, memory = traced.facts, traced.memory
    return {
        "model": {
            "trainable_params": facts.trainable_params,
            "total_params": facts.total_params,
            **facts.checkable(),
        },
        "skipped": list(facts.skipped),
        "caveats": caveats,
        "static_breakdown_bytes": memory.static_breakdown,
        "base_weights": _base_weights(traced) if traced.num_gpus == 1 else None,
        "managed_bytes": traced.managed_bytes,
        "phases": memory.phases,
        "timeline": memory.timeline,
    }


def _skip_caveats(skipped: Sequence[Skipped], point: Point) -> list[str]:
    """Say loudly when quantization leaves most of a model in 16 bit."""
    share = sum(group.get("share") or 0.0 for group in skipped)
    if point.precision not in QUANTIZED_PRECISIONS or share < 0.5:
        return []
    first = f"{skipped[0]['module']} ({skipped[0]['reason']})"
    return [f"{100 * share:.0f} % of the base weights stay unquantized: {first}"]


def _base_weights(traced: Trace) -> BaseWeights:
    """Return what the base model weighs in 16 bit and as built, in bytes, before adapters.

    These are the bytes of the tensors; what an allocator adds to them is no property of the weights.
    """
    facts, asked = traced.facts, traced.declared_bytes
    return {
        "sixteen_bit_bytes": 2 * facts.base_params,
        "quantized_bytes": facts.quantized_bytes,
        "quant_state_bytes": asked.get("quant_state", 0),
        "unquantized_bytes": asked.get("weights", 0) - facts.quantized_bytes,
        "quantized_params": facts.quantized_params,
        "unquantized_params": facts.base_params - facts.quantized_params,
    }


def _add_cuda(traced: Trace, metrics: Metrics, detail: Detail, card: Card) -> None:
    """Add what only CUDA has: the caching allocator's reserve, the context, and the kernels of attention."""
    assert traced.reserved_bytes is not None
    context = context_size(card.capability, traced.num_gpus)
    metrics["peak_reserved_bytes"] = traced.reserved_bytes
    metrics["device_bytes"] = traced.reserved_bytes + context.most
    detail["compute_capability"] = list(card.capability)
    detail["attention"] = list(traced.attention)
    detail["context_bytes"] = [context.least, context.most]
    detail["context_source"] = context.source


def _settings(asked: AllocatorConfig) -> AllocatorSettings:
    return {
        "expandable_segments": asked.expandable_segments,
        "max_split_size_bytes": asked.max_split_size_bytes,
        "garbage_collection_threshold": asked.garbage_collection_threshold,
    }


def _has_4bit(point: Point) -> bool:
    return point.precision in QUANTIZED_PRECISIONS and point.precision != "int8"


def _card_caveats(held: Sequence[Held], traced: Trace, card: Card, point: Point) -> list[str]:
    """Say where the metrics, which are of one card, do not speak for every card that was named."""
    said = []
    version = ".".join(map(str, card.capability))
    others = [gpu.name for gpu, found in held if isinstance(found, Trace) and _needs_other(found, traced)]
    if others:
        said.append(
            f"the numbers are for compute capability {version}; {', '.join(others)} would run other "
            "kernels; see its own figures"
        )
    said += [f"{gpu.name}: {found}" for gpu, found in held if isinstance(found, StepError)]
    without_cuda = [gpu.name for gpu, _ in held if gpu.compute_capability is None]
    if without_cuda:
        version = ".".join(map(str, card_of(None).capability))
        said.append(
            f"{', '.join(without_cuda)}: planned with CUDA's kernels of compute capability {version}; "
            "ROCm may choose others"
        )
    said += [
        f"{gpu.name}: planned at its full clocks, which the maker's power limit may reduce"
        for gpu in (one for one, _ in held)
        if gpu.name.endswith(("Laptop", "Max-Q"))
    ]
    uses_bf16 = point.precision not in ("fp32", "fp16") or point.train.autocast == "bf16"
    slow = [gpu.name for gpu, _ in held if gpu.peak_flops.get("bf16") is None]
    if slow and uses_bf16:
        said.append(
            f"{', '.join(slow)} without bf16 hardware (or no figure for it) will be slow or need fp16"
        )
    return said


def _kernel_caveats(
    held: Sequence[tuple[GpuSpec | None, Trace | StepError]], card: Card, point: Point
) -> list[str]:
    """Return what cannot be known of the kernels: of the metrics' card, and what else of the others."""
    tokens = point.train.per_device_train_batch_size * point.train.seq_len
    said: dict[str, str] = {}
    for gpu, found in held:
        if isinstance(found, Trace):
            on = card if gpu is None else card_of(gpu)
            for text in kernel_caveats(on, found.attention, tokens, _has_4bit(point)):
                said.setdefault(text, text if gpu is None else f"{gpu.name}: {text}")
    return list(said.values())


def _needs_other(found: Trace, traced: Trace) -> bool:
    """Say whether a step takes other memory on a card than the metrics say, which other kernels need not."""
    return (found.memory.peak_bytes, found.reserved_bytes) != (
        traced.memory.peak_bytes,
        traced.reserved_bytes,
    )


def _held_against(gpu: GpuSpec, found: Trace | StepError, allocator: AllocatorConfig, num_gpus: int) -> Fit:
    """Return whether a card holds the plan, what is left, and its cheapest price with cloud and date."""
    price = cheapest_on_demand(gpu.name) if gpu in catalog_gpus() else None
    fit = fit_of(gpu, found, allocator)
    if price is None:
        return fit
    usd_per_hour = price.on_demand_usd_per_hour * num_gpus
    return replace(fit, usd_per_hour=usd_per_hour, price_from=f"{price.cloud}, {price.date}")
